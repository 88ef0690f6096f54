"""Bad and hostile input, one line a case: what is fed, and the message that tells it before any work starts.

Each case damages one thing in a sound project and calls the job as a host does. Its message says what was given, what
was expected and what to try; no traceback, no wait, no half-done work.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input_project import (
    BOX,
    COUNT,
    HALF,
    MAP,
    MASK,
    STACK,
    STAR,
    Feed,
    Options,
    Project,
    both,
    cs_bytes,
    cs_table,
    every,
    given,
    group,
    holds,
    length,
    link,
    make_project,
    particle,
    pipe,
    text,
    without,
    words,
)

from flex_job.manifest import Manifest
from integration.relion.job import run

SIZE, MODE, INTERVALS, CELL, EXTENDED = 0, 12, 28, 40, 92  # places in an MRC header
HUGE = 2**31 - 1
NOT_A_NUMBER = float("nan")
LATENTS = "flexLatent1\n0\n1\n"
Case = tuple[Feed, str]

# -- the particle file and what it names -----------------------------------------------------------------------------

STAR_CASES: dict[str, Case] = {
    "empty": (text(lambda good: ""), r"run_data\.star: no particles .*expected run_data\.star of a 3D refinement"),
    "binary garbage": (
        text(lambda good: bytes(range(256)) * 40),
        r"run_data\.star: not a readable STAR file .*expected tables that begin with data_",
    ),
    "an image": (text(lambda good: Path(STACK).read_bytes()), r"not a readable STAR file .*expected tables"),
    "NUL bytes": (text(lambda good: good.replace("15000", "15\x00000")), r"not a readable STAR file .*plain text"),
    "byte order mark": (text(lambda good: b"\xef\xbb\xbf" + good.encode()), r"not a readable STAR file .*plain text"),
    "UTF-16": (text(lambda good: good.encode("utf-16")), r"not a readable STAR file .*plain text"),
    "latin-1": (text(lambda good: good.replace("Extract/a", "\xe9tude/a")), r"not a readable STAR file .*plain text"),
    "HTML of a login page": (text(lambda good: "<html>please log in</html>\n" * 50), r"not a readable STAR file"),
    "cut in a row": (text(lambda good: good[:-20]), r"not a readable STAR file .*Wrong number of values in loop"),
    "a row with too many words": (text(lambda good: good.rstrip() + " 7\n"), r"Wrong number of values in loop"),
    "two rows in a line": (
        text(lambda good: good.replace("\n000002", " 000002")),
        rf"{COUNT} particles in {COUNT - 1} lines; expected one line for each",
    ),
    "a column twice": (
        text(lambda good: good.replace("_rlnAngleTilt", "_rlnAngleRot")),
        r"not a readable STAR file .*duplicate tag _rlnAngleRot",
    ),
    "a table twice": (text(lambda good: good + good), r"not a readable STAR file .*duplicate block name"),
    "unclosed quote": (
        text(lambda good: good.replace("000003", "'000003")),
        r"not a readable STAR file .*unterminated",
    ),
    "a line of a million signs": (
        text(lambda good: good.replace("15000", "x" * 10**6)),
        r"column rlnDefocusU of table particles has 1 values .*first is 'xxx.* \.\.\. .*correct them",
    ),
    "text of several lines": (
        text(lambda good: good.replace(" 15000 ", "\n;first\nsecond\n;\n")),
        r"the first is 'first\\nsecond' in row 1; correct them",
    ),
    "no rows": (text(lambda good: re.sub(r"(?m)^0000.*\n", "", good)), r"no particles .*expected run_data\.star"),
    "optics without rows": (text(lambda good: re.sub("(?m)^1 opt.*\n", "", good)), r"optics table has no rows; give"),
    "a pipe": (pipe(STAR), r"--in_parts run_data\.star: not a file but a folder, device or pipe; expected: Particles"),
    "a device": (given(in_parts="/dev/zero"), r"--in_parts /dev/zero: not a file but .*expected: Particles"),
    "a folder": (given(in_parts="Extract"), r"--in_parts Extract: not a file but a folder.*expected: Particles"),
    "a file of /proc": (given(in_parts="/proc/self/maps"), r"/proc/self/maps: no particles .*expected run_data\.star"),
    "a name of 5000 signs": (given(in_parts="x" * 5000), r"--in_parts x+ .*: no such file; expected: Particles"),
    "missing": (given(in_parts="none.star"), r"--in_parts none\.star: no such file; expected: .*relative to /"),
    "NaN": (particle(2, "rlnAngleRot", "nan"), r"rlnAngleRot .* 1 values .* first is 'nan' in row 3; correct them"),
    "infinite": (particle(0, "rlnDefocusV", "inf"), r"rlnDefocusV .* first is 'inf' in row 1; correct them"),
    "1e300": (particle(1, "rlnOriginXAngst", "1e300"), r"rlnOriginXAngst .* at most 1e\+09 .*'1e300' in row 2"),
    "hexadecimal": (particle(1, "rlnAnglePsi", "0x10"), r"rlnAnglePsi .* finite numbers .*'0x10' in row 2; correct"),
    "empty quotes": (particle(1, "rlnAnglePsi", "''"), r"rlnAnglePsi .* finite numbers .*'' in row 2; correct"),
    "missing column": (without("rlnAngleTilt"), r"poses missing: no column rlnAngleTilt; give the particles of a fini"),
    "no defocus": (without("rlnDefocusU"), r"no column rlnDefocusU in table particles or table optics; give"),
    "half-set 3": (every("rlnRandomSubset", "1", "3"), r"rlnRandomSubset holds 1, 3; expected both 1 and 2; give"),
    "optics group 1.5": (particle(0, "rlnOpticsGroup", "1.5"), r"unknown optics group \(1\.5\).* defines 1; correct"),
    "optics group of 20 digits": (particle(0, "rlnOpticsGroup", "9" * 20), r"rlnOpticsGroup .* at most 1e\+09"),
    "an optics group twice": (
        text(lambda good: re.sub("(?m)^(1 opt.*\n)", r"\1\1", good)),
        r"table optics defines an optics group twice \(1, 1\); number",
    ),
    "voltage in volts": (group("rlnVoltage", "300000"), r"voltage \(kV\) is 300000; expected 1 to 10000; correct"),
    "negative pixel size": (group("rlnImagePixelSize", "-2"), r"pixel size -2 A; expected a positive number.*correct"),
    "tiny pixel size": (group("rlnImagePixelSize", "1e-30"), r"pixel size 1e-30 A; expected .* 0\.01 to 1000; correct"),
    "pixel size of another unit": (
        group("rlnImagePixelSize", "0.02"),
        r"images of 16 px of 0\.02 A show 0\.32 A, and the map is 32 A across .*expected about the same; correct",
    ),
    "magnification 1e8": (group("rlnMagMat00", "1e8"), r"matrix \[\[1e\+08, 0\].*expected one near the identity; corr"),
    "aberration 1e300": (group("rlnOddZernike", "[1e300]"), r"rlnOddZernike is '\[1e300\]'; expected a list"),
    "box 2^31": (group("rlnImageSize", str(2**31 - 1)), r"rlnImageSize .* at most 1e\+09|expected 2147483647"),
    "box of 100000 px": (group("rlnImageSize", "100000"), r"16 x 16 pixels; expected 100000 x 100000 .*; correct"),
    "subtomograms": (group("rlnImageDimensionality", "3"), r"subtomograms \(.*3\); expected 2D images"),
}

NAME_CASES: dict[str, Case] = {
    "climbs out of the project": (
        every("rlnImageName", "000001@../../etc/passwd"),
        r"1 image stacks are outside the project, the first is \.\./\.\./etc/passwd; expected .*ln -s.*full path",
    ),
    "climbs out in the middle": (
        particle(3, "rlnImageName", "1@Extract/../../../etc/shadow"),
        r"outside the project, the first is Extract/\.\./\.\./\.\./etc/shadow",
    ),
    "text file by its full path": (
        particle(0, "rlnImageName", "1@/etc/services"),
        r"/etc/services: not an MRC image stack .*expected 1 to 8192 pixels a side and one of the modes",
    ),
    "device": (particle(0, "rlnImageName", "1@/dev/zero"), r"/dev/zero: a device, pipe or socket; expected the file"),
    "device through a link": (
        both(link("Extract/z.mrcs", "/dev/zero"), particle(0, "rlnImageName", "1@Extract/z.mrcs")),
        r"Extract/z\.mrcs: a device, pipe or socket; expected the file named",
    ),
    "pipe": (
        both(pipe("Extract/p.mrcs"), particle(0, "rlnImageName", "1@Extract/p.mrcs")),
        r"Extract/p\.mrcs: a device, pipe or socket; expected the file named",
    ),
    "link to itself": (
        both(link("Extract/l.mrcs", "l.mrcs"), particle(0, "rlnImageName", "1@Extract/l.mrcs")),
        r"Extract/l\.mrcs: cannot be read \(Too many levels of symbolic links\); expected .*check path",
    ),
    "folder": (particle(0, "rlnImageName", "1@Extract"), r"Extract: a folder; expected the file named in the part"),
    "file of /proc": (particle(0, "rlnImageName", "1@/proc/self/status"), r"/proc/self/status: .*MRC"),
    "missing": (particle(0, "rlnImageName", "1@Extract/b.mrcs"), r"b\.mrcs: no such image stack; expected the file"),
    "all missing": (every("rlnImageName", "1@Extract/b.mrcs"), r"none of the 1 image stacks is found .*mend the paths"),
    "5000 signs": (particle(0, "rlnImageName", f"1@{'x' * 5000}"), r"x \.\.\. x|File name too long"),
    "image 0": (particle(0, "rlnImageName", f"0@{STACK}"), rf"image number 0 is asked for, the stack holds {COUNT} \("),
    "image beyond the end": (particle(0, "rlnImageName", f"9@{STACK}"), r"image number 9 is asked for, the stack hol"),
    "image -1": (particle(0, "rlnImageName", f"-1@{STACK}"), r"not number@stack, the first is '-1@.*expected such as"),
    "image of 30 digits": (particle(0, "rlnImageName", f"{'9' * 30}@{STACK}"), r"not number@stack, .*in row 1; expect"),
    "no stack after the number": (particle(0, "rlnImageName", "1@"), r"not number@stack, the first is '1@' in row 1"),
    "shell words": (
        particle(0, "rlnImageName", "1@Extract/$(touch${IFS}ran);touch${IFS}ran|`touch${IFS}ran`"),
        r"no such image stack; expected the file named",
    ),
    "terminal commands": (
        both(holds("a\x1b[2Jb\n.star", ""), given(in_parts="a\x1b[2Jb\n.star")),
        r"a\\x1b\[2Jb \.star: no particles",
    ),
}


def npy_of(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# -- cryoSPARC's tables ----------------------------------------------------------------------------------------------


def cs(raw: Callable[[bytes], bytes] = bytes, /, **changes: Any) -> Feed:
    """cryoSPARC's particle table with fields changed (/ is __ here), then its bytes."""

    def feed(project: Project) -> Options:
        fields = cs_table() | {name.replace("__", "/"): value for name, value in changes.items()}
        Path("p.cs").write_bytes(raw(cs_bytes({name: value for name, value in fields.items() if value is not None})))
        return {"in_parts": "p.cs", "in_3dref": MAP}

    return feed


def eight(value: Any, dtype: str = "f4") -> Any:
    return np.array([value] * COUNT, dtype=dtype)


CS_CASES: dict[str, Case] = {
    "empty": (cs(lambda raw: b""), r"p\.cs: not a numpy file .*expected a cryoSPARC table \(\.cs\) of particles"),
    "text": (cs(lambda raw: b"uid,path\n" * 99), r"p\.cs: not a numpy file .*expected a cryoSPARC table"),
    "cut": (cs(lambda raw: raw[:-100]), r"p\.cs: truncated, [67] of the 8 rows its header promises; copy it again"),
    "the newer format": (cs(lambda raw: b"\x95CSDAT" + raw), r"compressed stream format; expected .*; convert it with"),
    "10^12 rows": (
        cs(lambda raw: raw.replace(b"'shape': (8,), }" + b" " * 12, b"'shape': (1000000000000,), }")),
        r"truncated, 8 of the 1000000000000 rows its header promises; copy it again",
    ),
    "objects": (
        holds("p.cs", npy_of(np.array([({}, 1)], [("a", "O"), ("uid", "u8")])), in_parts="p.cs"),
        r"p\.cs: holds Python objects, which are never read; expected a cryoSPARC table",
    ),
    "a plain array": (holds("p.cs", npy_of(np.ones(3)), in_parts="p.cs"), r"not a table with a uid field; expected"),
    "uids twice": (cs(uid=eight(1, "u8")), r"p\.cs: some uids are there twice; expected each particle once"),
    "no poses": (cs(alignments3D__pose=None), r"no field alignments3D/pose; expected the particles of a 3D refinement"),
    "NaN": (
        cs(alignments3D__shift=eight([0, np.nan])),
        r"alignments3D/shift is not finite for 8 .* row 1; remove them",
    ),
    "one half-set": (
        cs(alignments3D__split=eight(1, "u4")),
        r"alignments3D/split holds 1; expected both 0 and 1; give",
    ),
    "climbs out": (
        cs(blob__path=eight("../../etc/passwd", "S20")),
        r"outside the project, the first is '\.\./\.\./etc",
    ),
    "image beyond the end": (cs(blob__idx=eight(99, "u4")), rf"number 100 is asked for, the stack holds {COUNT} \("),
    "pixel size 0": (cs(blob__psize_A=eight(0)), r"pixel size 0 A; expected a positive number, 0\.01 to 1000; correct"),
    "box of 10^9": (cs(blob__shape=eight([10**9] * 2, "u4")), r"16 x 16 pixels; expected 1000000000 x 1000000000"),
}

# -- MRC files -------------------------------------------------------------------------------------------------------

MRC_CASES: dict[str, Case] = {
    "stack: empty": (length(STACK, 0), r"a\.mrcs: 0 bytes, shorter than an MRC header of 1024; copy the image stack"),
    "stack: cut": (length(STACK, 3000), rf"a\.mrcs: truncated, 1 of the {COUNT} images .* are there; copy it again"),
    "stack: longer than it says": (
        length(STACK, 1024 + 4 * BOX**2 * 30),
        rf"a\.mrcs: longer than its header says: {COUNT} images .*room for 30; .*write the file again",
    ),
    "stack: promises 2^31 images": (words(STACK, 8, "<i", HUGE), rf"truncated, {COUNT} of the {HUGE} images .*copy"),
    "stack: 2^31 pixels a side": (
        words(STACK, SIZE, "<2i", HUGE, HUGE),
        rf"not an MRC image stack \(size {HUGE} x {HUGE} x {COUNT}, mode 2\); expected 1 to 8192 pixels",
    ),
    "stack: negative sizes": (words(STACK, SIZE, "<3i", -1, -1, -1), r"not an MRC image stack \(size -1 x -1 x -1"),
    "stack: no images": (words(STACK, 8, "<i", 0), r"not an MRC image stack \(size 16 x 16 x 0, mode 2\); expected 1"),
    "stack: complex numbers": (words(STACK, MODE, "<i", 4), r"mode 4\); expected .*one of the modes 0, 1, 2, 6, 12"),
    "stack: extended header of 2 GiB": (words(STACK, EXTENDED, "<i", HUGE), r"truncated, 0 of the 8 images .*copy"),
    "stack: negative extended header": (words(STACK, EXTENDED, "<i", -1), r"a\.mrcs: not an MRC image stack"),
    "stack: not square": (words(STACK, SIZE, "<2i", 8, 32), r"images of 32 x 8 pixels; expected 16 x 16 .*correct"),
    "stack: NaN": (words(STACK, 1024, "<f", NOT_A_NUMBER), r"1 of 8 sampled .* not finite .*such as 1@.*remove these"),
    "map: a hole of 2 TiB": (
        both(words(MAP, SIZE, "<3i", 8192, 8192, 8192), length(MAP, 1024 + 4 * 8192**3)),
        r"run_class001\.mrc: 8192 px a side need 4096\.0 GiB of memory and .* are free; give a smaller volume",
    ),
    "map: 2^31 voxels a side": (words(MAP, SIZE, "<3i", HUGE, HUGE, HUGE), rf"not an MRC volume \(size {HUGE} x"),
    "map: not cubic": (words(MAP, SIZE, "<i", 8), r"shape \(16, 16, 8\) \(z, y, x\); expected a cubic volume"),
    "map: cut": (length(MAP, 5000), r"run_class001\.mrc: truncated, 3 of the 16 images .*copy it again"),
    "map: packed": (holds(MAP, b"\x1f\x8b\x08" + bytes(3000)), r"run_class001\.mrc: not an MRC volume .*give another"),
    "map: NaN": (words(MAP, 1024, "<f", NOT_A_NUMBER), r"run_class001\.mrc: holds values that are not finite .*again"),
    "map: values of 1e38": (words(MAP, 1024, "<f", 1e38), r"values from .* to 1e\+38; expected at most 1e\+15; scale"),
    "map: pixel size NaN": (words(MAP, CELL, "<f", NOT_A_NUMBER), r"pixel size nan A .*expected a positive .*set it"),
    "map: pixel size 1e30": (words(MAP, CELL, "<f", 1e30), r"pixel size 6\.25e\+28 A .*0\.01 to 1000; set it"),
    "map: no intervals": (words(MAP, INTERVALS, "<i", 0), r"pixel size 0 A in the MRC header; expected .*set it"),
    "map: of another scale": (words(MAP, CELL, "<f", 1600.0), r"the map is 1600 A across .*about the same; correct"),
    "map: a pipe": (pipe("p.mrc", in_3dref="p.mrc"), r"--in_3dref p\.mrc: not a file but .*expected: Consensus map"),
    "map: a folder": (given(in_3dref="Extract"), r"--in_3dref Extract: not a file but a folder.*expected: Consensus"),
    "map: the particles": (
        given(in_3dref="Model/flex_model.pt"),
        r"flex_model\.pt: not an MRC volume .*give another file",
    ),
    "half-map: cut": (length(HALF, 2000), r"run_half2_class001_unfil\.mrc: truncated, 0 of the 16 .*copy it again"),
    "mask: of another pixel": (
        words(MASK, CELL, "<f", 48.0, in_mask=MASK),
        r"mask's pixel size is 3 A .*set the right",
    ),
    "mask: a map of 5": (words(MASK, 1024, "<f", 5.0, in_mask=MASK), r"values run from 0 to 5; expected 0 to 1 \(is"),
    "mask: truncated": (length(MASK, 1030, in_mask=MASK), r"mask\.mrc: truncated, 0 of the 16 images"),
    "zero-motion mask: a pipe": (
        pipe("z.mrc", zero_motion_mask="z.mrc"),
        r"zero_motion_mask: z\.mrc .* device or pipe; expect",
    ),
    "zero-motion mask: text": (
        given(zero_motion_mask=STAR),
        r"run_data\.star: 986 bytes, shorter than an MRC header of 1024; copy",
    ),
    "segmentation: a map": (given(segmentation=MAP), r"segmentation must hold whole numbers, .* from .* to 1, up to"),
    "segmentation: 1e9": (words(MASK, 1024, "<f", 1e9, segmentation=MASK), r"at most 1000 .* from 0 to 1e\+09"),
}

# -- meshes ----------------------------------------------------------------------------------------------------------


def npz(**arrays: Any) -> Feed:
    """Our mesh with some of its arrays changed."""

    def feed(project: Project) -> Options:
        with np.load("mesh.npz") as file:
            sound = {name: file[name] for name in file.files}
        np.savez("m.npz", **{name: value for name, value in (sound | arrays).items() if value is not None})
        return {"mesh": "m.npz"}

    return feed


def pickled(change: Callable[[dict[str, Any]], object], protocol: int = 4) -> Feed:
    """cryoSPARC's mesh with something changed in it."""

    def feed(project: Project) -> Options:
        sound = pickle.loads(Path("mesh.pkl").read_bytes())
        Path("m.pkl").write_bytes(pickle.dumps(change(sound), protocol=protocol))
        return {"mesh": "m.pkl"}

    return feed


class Call:
    """What a pickle calls when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def bomb(name: str, entry: str) -> Feed:
    """A packed file whose one entry is 2 GiB of zeros."""

    def feed(project: Project) -> Options:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            info = zipfile.ZipInfo(entry)
            with archive.open(info, "w") as file:
                for _ in range(2):
                    file.write(bytes(1 << 20))
        raw = Path(name).read_bytes()  # the directory at the end says how much will come out
        Path(name).write_bytes(raw.replace((2 << 20).to_bytes(4, "little"), (2 << 30).to_bytes(4, "little")))
        return {"mesh": name}

    return feed


def header_of(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def stored_npz(**entries: bytes) -> Feed:
    def feed(project: Project) -> Options:
        with zipfile.ZipFile("m.npz", "w") as archive:
            for name, content in entries.items():
                archive.writestr(f"{name}.npy", content)
        return {"mesh": "m.npz"}

    return feed


SCHEMA = header_of("()", "<i4") + (1).to_bytes(4, "little")
ATTACK = "touch ran"
MESH_CASES: dict[str, Case] = {
    "npz: text": (holds("m.npz", "none", mesh="m.npz"), r"m\.npz: not a mesh written by flex-job .*build it again"),
    "npz: empty": (holds("m.npz", "", mesh="m.npz"), r"m\.npz: not a mesh written by flex-job"),
    "npz: a pipe": (
        pipe("m.npz", mesh="m.npz"),
        r"mesh: m\.npz was given, and it is a folder, device or pipe; expected",
    ),
    "npz: another schema": (npz(schema=np.int32(9)), r"schema 9; this version reads schema 1.*build it again"),
    "npz: no cells": (npz(cells=None), r"not a mesh written by flex-job .*cells"),
    "npz: cells of vertices that are not there": (
        npz(cells=np.full((5, 4), 99, "i4")),
        r"cells name vertices 99 to 99",
    ),
    "npz: NaN": (npz(vertices_A=np.full((8, 3), np.nan)), r"vertices are not numbers of at most 1e\+06 A"),
    "npz: vertices at 1e300": (npz(vertices_A=np.full((8, 3), 1e300)), r"not numbers of at most 1e\+06 A"),
    "npz: negative rigidity": (npz(rigidity=np.full(5, -1, "f4")), r"rigidity has values that are not numbers from 0"),
    "npz: flat cells": (npz(vertices_A=np.zeros((8, 3))), r"5 of 5 cells are flat or inverted"),
    "npz: objects": (
        npz(cells=np.array([{}, Call(os.system, ATTACK)])),
        r"not a mesh written by flex-job .*allow_pick",
    ),
    "npz: 8 TB by its header": (
        stored_npz(schema=SCHEMA, vertices_A=header_of("(1099511627776,)")),
        r"m\.npz: not a mesh written by flex-job",
    ),
    "npz: 2 GiB of zeros, packed": (bomb("m.npz", "cells.npy"), r"2147483648 bytes unpacked; expected at most 107374"),
    "pickle: runs a command": (pickled(lambda mesh: mesh | {"N": Call(os.system, ATTACK)}), r"m\.pkl: .*refused .*sys"),
    "pickle: builtins": (pickled(lambda mesh: Call(eval, "open('ran', 'w')")), r"refused builtins\.eval: only plain"),
    "pickle: objects": (pickled(lambda mesh: mesh | {"mask": np.array([{}], object)}), r"refused an array of object"),
    "pickle: a list": (pickled(lambda mesh: [mesh]), r"holds a list, expected an array or a dict.*export it again"),
    "pickle: missing parts": (pickled(lambda mesh: {"N": BOX}), r"tm_points, tm_cells, .* missing; export it again"),
    "pickle: box of 10^9": (pickled(lambda mesh: mesh | {"N": 10**9}), r"N is 1000000000; expected .* 1 to 8192"),
    "pickle: box that is text": (pickled(lambda mesh: mesh | {"N": "16"}), r"N is 16; expected a whole number"),
    "pickle: pixel size 0": (pickled(lambda mesh: mesh | {"psize_A": 0.0}), r"psize_A is 0; expected 0\.01 to 1000"),
    "pickle: wrong shape": (pickled(lambda mesh: mesh | {"tm_cells": np.arange(7)}), r"tm_cells has shape \(7,\); exp"),
    "pickle: numbers that wrap": (
        pickled(lambda mesh: mesh | {"tm_cells": mesh["tm_cells"].astype("i8") + 2**32}),
        r"cells or voxels name vertices or cells that are not there",
    ),
    "pickle: a place of 4 billion": (
        holds("m.pkl", b"\x80\x04}r\xff\xff\xff\xff.", mesh="m.pkl"),
        r"m\.pkl: not a pickle of plain arrays \(more than 100000 instructions\)",
    ),
    "pickle: 2^60 bytes": (
        holds("m.pkl", b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b".", mesh="m.pkl"),
        r"m\.pkl: not a pickle of plain arrays",
    ),
    "pickle: a type made over": (
        # dtype("f8", False, True) whose state says that its bytes are pointers to objects
        holds(
            "m.pkl", b"\x80\x02}U\x01Ncnumpy\ndtype\nU\x02f8\x89\x88\x87R(K\x03U\x01<NNNK\x08K\x01K?tbs.", mesh="m.pkl"
        ),
        r"not a cryoSPARC mesh: N, psize_A, tm_points, .* missing",
    ),
    "pickle: a function made over": (
        holds("m.pkl", b"\x80\x02c_codecs\nencode\n}U\x08__code__K\x01sb.", mesh="m.pkl"),
        r"not a pickle of plain arrays \(refused a change of a function\)",
    ),
    "pickle: empty": (holds("m.pkl", "", mesh="m.pkl"), r"m\.pkl: not a pickle of plain arrays"),
}

# -- parameters and config -------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
PARAMETER_CASES: dict[str, Case] = {
    "text for a number": (given(batch="many"), r"batch: 'many' was given; expected a whole number from 1 to 100000"),
    "too many": (given(latent_dims="10000000000"), r"latent_dims: 10000000000 was given; expected .* from 1 to 16"),
    "NaN": (given(rigidity="nan"), r"rigidity: nan was given; expected auto or a number from 0\.001 to 1000; the de"),
    "infinite": (given(max_iterations="1e999"), r"max_iterations: '1e999' was given; expected a whole number"),
    "5000 digits": (given(seed="9" * 5000), r"seed: '999.* was given; expected a whole number from 0 to"),
    "cells that would need terabytes": (given(tetra_cells="100000"), r"tetra_cells: 100000 .* from 4 to 80"),
    "a box of a million": (given(reconstruct_box="1000000"), r"reconstruct_box: 1000000 .*from 0 to 2048"),
    "unknown choice": (given(half_sets="gold"), r"half_sets: 'gold' was given; expected one of consensus, random"),
    "fuse": (given(fuse="1-$(x)"), r'fuse: "1-\$\(x\)" .* not a pair of segments; expected for example "1-2,2-3"'),
    "rigid segments": (given(rigid_segments="\u00b2"), r'rigid_segments: "\xb2" .* expected for example "1,3"'),
    "segments without segmentation": (given(fuse="1-2"), r"fuse and rigid_segments need a segmentation; none was giv"),
    "devices": (given(devices="cpu:1000"), r"devices: 'cpu:1000' was given; expected numbers of GPUs .*or cpu"),
    "scratch": (given(scratch="nowhere"), r"scratch: nowhere was given; expected an existing folder"),
    "scratch that is a file": (given(scratch=STAR), r"scratch: run_data\.star was given; expected an existing folder"),
    "latent columns": (given(latent_dims="1", latent_columns="flexLatent9"), r"flexLatent9 are not in the particle ta"),
    "config: not YAML": (holds("c.yaml", "a: [", config="c.yaml"), r"c\.yaml is not YAML .*expected lines such as lat"),
    "config: a list": (holds("c.yaml", "- 1", config="c.yaml"), r"c\.yaml holds a list; expected lines such as latent"),
    "config: bytes": (holds("c.yaml", b"\xff\xfe\x00", config="c.yaml"), r"c\.yaml is not YAML .*expected lines such"),
    "config: runs a command": (
        holds("c.yaml", f"seed: !!python/object/apply:os.system ['{ATTACK}']", config="c.yaml"),
        r"c\.yaml is not YAML \(could not determine a constructor .*expected lines such as",
    ),
    "config: a billion laughs": (
        holds("c.yaml", LAUGHS, config="c.yaml"),
        r"values within values, or refers from one to another \(\*\);",
    ),
    "config: 10000 brackets": (
        holds("c.yaml", "a: " + "[" * 10000, config="c.yaml"),
        r"c\.yaml has values within values",
    ),
    "config: a megabyte": (holds("c.yaml", "#" * 2**20, config="c.yaml"), r"1048576 bytes; expected .* at most 65536"),
    "config: a value twice": (holds("c.yaml", "seed: 1\nseed: 2", config="c.yaml"), r"gives seed twice; .*remove one"),
    "config: a table": (holds("c.yaml", "seed: {a: 1}", config="c.yaml"), r"gives seed a dict; expected .*number or"),
    "config: a date": (holds("c.yaml", "seed: 2024-01-01", config="c.yaml"), r"gives seed a date; expected lines"),
    "config: not a number": (
        holds("c.yaml", "seed: !!float", config="c.yaml"),
        r"c\.yaml is not YAML .*expected lines",
    ),
    "config: no such date": (holds("c.yaml", "seed: 2024-99-99", config="c.yaml"), r"c\.yaml is not YAML \(month must"),
    "config: unknown name": (holds("c.yaml", "latent_dim: 2", config="c.yaml"), r"no parameter latent_dim; did you me"),
    "config: out of bounds": (holds("c.yaml", "epochs: -1", config="c.yaml"), r"config file: epochs: -1 was given; e"),
    "config: missing": (given(config="none.yaml"), r"config: none\.yaml was given, and there is no such file"),
    "config: a pipe": (
        pipe("c.yaml", config="c.yaml"),
        r"config: c\.yaml was given, and it is a folder, device or pipe",
    ),
}

# -- embeddings of other programs ------------------------------------------------------------------------------------


def embedding(content: object, name: str = "z.pkl", **options: str) -> Feed:
    """An embedding of this content: bytes as they are, all else as a pickle or, by its name, as .npy or .npz."""
    if not isinstance(content, bytes):
        file = io.BytesIO()
        if name.endswith(".npy"):
            np.save(file, content)
        elif name.endswith(".npz"):
            np.savez(file, **content)
        else:
            pickle.dump(content, file)
        content = file.getvalue()
    return holds(name, content, latent_file=name, **{"latent_dims": "2"} | options)


def rows(count: int = COUNT, dims: int = 3, **changes: float) -> np.ndarray:
    """A sound embedding, and numbers put in its first row."""
    values = np.random.default_rng(0).normal(size=(count, dims)).astype("f4")
    for value in changes.values():
        values[0] = value
    return values


EMBEDDING_CASES: dict[str, Case] = {
    "missing": (given(latent_file="z.pkl"), r"latent_file: z\.pkl was given, and there is no such file; expected"),
    "a pipe": (pipe("z.pkl", latent_file="z.pkl"), r"latent_file: z\.pkl was given, and it is a folder, device or pi"),
    "empty": (embedding(b""), r"z\.pkl: not a pickle of plain arrays .*expected an embedding of the particles: z\.N"),
    "text": (embedding(b"0.1 0.2\n" * 8), r"z\.pkl: not a pickle of plain arrays .*; export it again"),
    "runs a command": (embedding(Call(os.system, ATTACK)), r"z\.pkl: .*refused .*system"),
    "runs a command in a dict": (embedding({"zs": {2: Call(eval, "1")}}), r"z\.pkl: .*refused builtins\.eval"),
    "a tensor": (embedding(torch.zeros(8, 2)), r"z\.pkl: .*refused torch\._utils\._rebuild_tensor_v2: only plain"),
    "a list": (embedding([[0.0, 1.0]] * 8), r"it holds a list, expected an array or a dict"),
    "a dict of other things": (embedding({"a": rows(), "b": rows()}), r"it holds a, b; expected one array, or one na"),
    "no dimensions": (embedding({"zs": {"x": rows()}}), r"no arrays by number of dimensions in it; expected an embed"),
    "text for numbers": (embedding(np.full((8, 2), "a"), "z.npy"), r"z\.npy: an array of <U1; expected numbers"),
    "complex": (embedding(np.ones((8, 2), complex), "z.npy"), r"z\.npy: an array of complex128; expected numbers"),
    "objects": (embedding(np.array([{}], object), "z.npy"), r"z\.npy: an \.npy file whose header tells .*type object"),
    "three axes": (embedding(np.zeros((8, 2, 2)), "z.npy"), r"shape \(8, 2, 2\); expected particles x dimensions"),
    "a number": (embedding(np.zeros(()), "z.npy"), r"an array of shape \(\); expected particles x dimensions"),
    "8 TB by its header": (
        embedding(header_of("(1099511627776,)"), "z.npy"),
        r"z\.npy: an \.npy file whose header tells of shape \(1099511627776,\) .* with 0 bytes; .*copy it again",
    ),
    "a header of brackets": (embedding(header_of("(" * 90), "z.npy"), r"z\.npy: not a sound \.npy file"),
    "cut": (embedding(npy_of(rows())[:-4], "z.npy"), r"with 92 bytes; expected as many numbers as it tells of"),
    "npz: cut": (embedding(b"PK\x03\x04" + bytes(50), "z.npz"), r"z\.npz: not a sound \.npz file .*save it again"),
    "npz: 2 GiB of zeros, packed": (
        both(bomb("z.npz", "z.npy"), given(latent_file="z.npz", latent_dims="2", mesh="")),
        r"z\.npz: 2147483648 bytes unpacked; expected an embedding",
    ),
    "npz: several": (embedding({"a": rows(), "b": rows()}, "z.npz"), r"z\.npz: it holds a, b; expected one array"),
    "too few rows": (embedding(rows(5)), r"z\.pkl: 5 rows; expected 8, one for each particle in the order of the"),
    "too few dimensions": (embedding(rows(dims=1)), r"1 dimensions; expected at least latent_dims, which is 2; low"),
    "empty rows": (embedding(rows(x=NOT_A_NUMBER)), r"1 of 8 rows are empty or not numbers .*leave out the particles"),
    "1e30": (embedding(rows(x=1e30)), r"1 of 8 rows are empty or not numbers of at most 1e\+09 in size"),
    "all the same": (embedding(np.ones((8, 3))), r"0 of its 3 dimensions vary; expected latent_dims, which is 2"),
    "no number of latents": (
        embedding(rows(), latent_dims="auto"),
        r"latent_dims: auto with a latent_file; expected how many",
    ),
    "columns as well": (embedding(rows(), latent_columns="flexLatent1"), r"latent_columns and latent_file were both"),
}

# -- latents and models: what generate is given ----------------------------------------------------------------------


def changed_model(**changes: Callable[[Any], Any]) -> Feed:
    def feed(project: Project) -> Options:
        data = torch.load("Model/flex_model.pt", weights_only=True)
        torch.save(data | {name: change(data[name]) for name, change in changes.items()}, "m.pt")
        return {"in_model": "m.pt"}

    return feed


def attacking_model(project: Project) -> Options:
    torch.save({"schema": Call(os.system, ATTACK)}, "m.pt")
    return {"in_model": "m.pt"}


def repacked_model(project: Project) -> Options:
    with zipfile.ZipFile("Model/flex_model.pt") as source, zipfile.ZipFile("m.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return {"in_model": "m.pt"}


def latents(content: bytes | str) -> Feed:
    return holds("l.csv", content, latents="l.csv")


GENERATE_CASES: dict[str, Case] = {
    "latents: empty": (latents(""), r"l\.csv: latent columns found: none; expected flexLatent1, flexLatent2"),
    "latents: no rows": (latents("flexLatent1\n"), r"l\.csv: expected at least one row, and finite numbers"),
    "latents: text": (
        latents("flexLatent1\nabc\n"),
        r"l\.csv: not a table of numbers \(could not convert .*'abc'\); exp",
    ),
    "latents: decimal comma": (latents("flexLatent1\n1,5\n"), r"row 1 has 2 fields and the header 1\); expected the"),
    "latents: a row too short": (latents("frame,flexLatent1\na\n"), r"row 1 has 1 fields and the header 2"),
    "latents: a column twice": (latents("flexLatent1,flexLatent1\n0,1\n"), r"flexLatent column stands .* twice"),
    "latents: a gap": (latents("flexLatent2\n0\n"), r"columns found: flexLatent2; expected flexLatent1, .* no gap"),
    "latents: one too many": (latents("flexLatent1,flexLatent2\n0,0\n"), r"2 latent columns; expected 1, flexLatent1"),
    "latents: NaN": (latents("flexLatent1\nnan\n"), r"l\.csv: expected at least one row, and finite numbers only"),
    "latents: 1e30": (latents("flexLatent1\n1e30\n"), r"latents of up to 1e\+30; expected at most 1000 .*take them"),
    "latents: a map each": (
        latents("flexLatent1\n" + "0\n" * 20000),
        r"20000 rows; expected at most 10000, .*give few",
    ),
    "latents: latin-1": (latents(b"flexLatent1,\xe9\n0,0\n"), r"not a table of numbers .*plain text \(UTF-8\)"),
    "latents: binary": (latents(bytes(range(256))), r"l\.csv: not a table of numbers .*expected the header"),
    "latents: a pipe": (
        pipe("l.csv", latents="l.csv"),
        r"latents: l\.csv was given, and it is a folder, device or pipe",
    ),
    "latents: a field of a megabyte": (
        latents("flexLatent1\n" + "1" * 2**20),
        r"not a table of numbers \(field larger",
    ),
    "latents: STAR with text": (
        holds("l.star", "data_\nloop_\n_flexLatent1\nabc\n", latents="l.star"),
        r"flexLatent1 .* first is 'abc' in row 1; correct them",
    ),
    "model: missing": (given(in_model="none.pt"), r"--in_model none\.pt: no such file; expected: Job directory"),
    "model: folder without one": (given(in_model="Extract"), r"no flex_model\.pt in it; expected the job directory"),
    "model: empty": (holds("m.pt", "", in_model="m.pt"), r"m\.pt: not a trained model .*train it again"),
    "model: text": (holds("m.pt", "none", in_model="m.pt"), r"m\.pt: not a trained model of this software"),
    "model: cut": (length("Model/flex_model.pt", 5000, in_model="Model"), r"flex_model\.pt: not a trained model"),
    "model: runs a command": (attacking_model, r"m\.pt: not a trained model .*more than tensors, .*system"),
    "model: an older pickle": (
        holds("m.pt", pickle.dumps({"schema": 1}), in_model="m.pt"),
        r"m\.pt: not a trained model .*not what torch.save writes",
    ),
    "model: packed": (repacked_model, r"m\.pt: not a trained model .*its parts are packed, or larger than the file"),
    "model: another schema": (changed_model(schema=lambda _: 99), r"schema 99; this version reads schema 1"),
    "model: a list": (changed_model(latents=lambda _: [1.0]), r"latents is not a plain tensor"),
    "model: seems larger": (
        changed_model(latents=lambda _: torch.zeros(1, 1).expand(10**12, 1)),
        r"latents is not a plain tensor",
    ),
    "model: layers by the million": (changed_model(flow_shape=lambda _: [1, 10**6, 4]), r"1000000 layers and 4 units"),
    "model: units by the million": (changed_model(flow_shape=lambda _: [1, 1, 10**6]), r"1 layers and 1000000 units"),
    "model: NaN": (changed_model(latents=lambda old: old * np.nan), r"latents has values that are not finite"),
    "model: other particles": (changed_model(covariance=lambda old: old[:3]), r"covariance has shape \(3, 1, 1\); exp"),
    "model: pixel size": (changed_model(pixel_size_A=lambda _: 1e-20), r"not a trained model .*pixel size 1e-20 A"),
    "map: of another extent": (
        words(MAP, CELL, "<f", 160.0, in_3dref=MAP),
        r"run_class001\.mrc: 160\.0 A across; expected 32\.0 A, the extent of the model's map",
    ),
}


def recorded(**entries: Any) -> Feed:
    """The manifest beside the model says this."""

    def feed(project: Project) -> Options:
        Manifest(Path("Model")).describe(**entries)
        return {}

    return feed


RECONSTRUCT_CASES: dict[str, Case] = {
    "manifest: names what is gone": (
        recorded(read={"particles": STAR, "map": "none.mrc"}),
        r"trained on none\.mrc, which is not there; expected the file, or another one with --in_3dref",
    ),
    "manifest: a list for a table": (
        recorded(read=[1]),
        r"Model/manifest\.json: does not say how .*train the model ag",
    ),
    "manifest: unknown parameter": (
        recorded(parameters={"prep": {"os.system": ATTACK}}),
        r"Model/manifest\.json: does not say .*unexpected keyword.*expected that of the model's job; train",
    ),
    "manifest: out of bounds": (
        recorded(parameters={"prep": {"noise_particles": -5}}),
        r"Model/manifest\.json: does not say how .*noise_particles: -5 was given; expected a whole number",
    ),
    "no manifest": (given(), r"--in_parts was not given, and the model's job does not say what it was trained on"),
}

TABLE = {
    f"{kind}: {name}" if kind != "MRC" else f"MRC {name}": (job, *case)
    for kind, job, cases in (
        ("STAR", "refine", STAR_CASES),
        ("image name", "refine", NAME_CASES),
        ("cs", "refine", CS_CASES),
        ("MRC", "refine", MRC_CASES),
        ("mesh", "refine", MESH_CASES),
        ("parameter", "refine", PARAMETER_CASES),
        ("embedding", "refine", EMBEDDING_CASES),
        ("generate", "generate", GENERATE_CASES),
        ("reconstruct", "reconstruct", RECONSTRUCT_CASES),
    )
    for name, case in cases.items()
}


def moved(source: str, target: str) -> Feed:
    def feed(project: Project) -> None:
        shutil.move(source, target)

    return feed


# What looks odd and is sound: without these, a reader that refuses everything would pass.
SOUND: dict[str, Feed] = {
    "as it is": given(),
    "CRLF": text(lambda good: good.replace("\n", "\r\n")),
    "quoted strings": text(lambda good: good.replace("opticsGroup1", "'my group'").replace(" 15000 ", ' "15000" ')),
    "comments and blank lines": text(lambda good: "# hello\n\n" + good.replace("data_part", "\n# x\n\ndata_part")),
    "full path": lambda project: every(
        "rlnImageName", *[f"{row + 1}@{Path(STACK).absolute()}" for row in range(COUNT)]
    )(project),
    "stack through links": both(moved("Extract", "elsewhere"), link("Extract", "elsewhere")),
    "dots that stay inside": every("rlnImageName", *[f"{row + 1}@Extract/../{STACK}" for row in range(COUNT)]),
    "mesh of ours": given(mesh="mesh.npz"),
    "mesh of cryoSPARC": given(mesh="mesh.pkl"),
    "cryoSPARC's table": cs(),
    "config": holds("c.yaml", "latent_dims: 1\nlatent_columns: [flexLatent1]\n", config="c.yaml"),
    "embedding of cryoDRGN": embedding(pickle.dumps(rows()) + pickle.dumps(rows())),
    "embedding of RECOVAR": embedding({"latent_coords": {2: rows(dims=2), "4_noreg": rows(dims=4)}}, "embeddings.pkl"),
    "trailing bytes": length(STACK, 1024 + 4 * BOX**2 * COUNT + 100),
}


class WorkBegan(Exception):
    """All checks were passed."""


@pytest.fixture(scope="module")
def sound_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("sound") / "project")


@pytest.fixture
def project(sound_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    shutil.copytree(sound_project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")

    def begin(*_: object) -> None:
        raise WorkBegan("all checks were passed")

    monkeypatch.setattr("integration.relion.work.refine", begin)
    monkeypatch.setattr("flex_job.series.frames", begin)
    return Project()


Told = Callable[..., str]


@pytest.fixture
def told(project: Project, capsys: pytest.CaptureFixture[str]) -> Told:
    """`told(job, feed)` is what the job says on stderr."""

    def call(job: str, feed: Feed) -> str:
        options = feed(project) or {}
        if project.particles and not Path(STAR).is_fifo():
            Path(STAR).write_text(project.text())
        inputs = {"in_parts": STAR} if job == "refine" else {"in_model": "Model"}
        assert run(job, {"o": "External/job001/", **inputs, **options}) == 1
        assert Path("External/job001/RELION_JOB_EXIT_FAILURE").exists()
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_told(name: str, told: Told) -> None:
    job, feed, says = TABLE[name]
    began = time.monotonic()
    text = told(job, feed)
    assert time.monotonic() - began < 60  # nothing waits; the machine may be busy
    messages = text.splitlines()[1:]
    assert re.search(r"problems? with the input:\n", text), text
    assert any(re.search(says, message) for message in messages), text
    assert all(re.match(r"  \d+\. ", message) and len(message) < 1100 for message in messages), text
    assert "Traceback" not in text
    assert all(sign.isprintable() or sign == "\n" for sign in text)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", SOUND)
def test_what_only_looks_odd_is_taken(name: str, told: Told) -> None:
    assert "all checks were passed" in told("refine", SOUND[name])


def test_all_problems_come_in_one_message(told: Told) -> None:
    names = [
        "STAR: NaN",
        "STAR: half-set 3",
        "STAR: voltage in volts",
        "image name: device",
        "MRC map: NaN",
        "MRC mask: truncated",
        "mesh: npz: flat cells",
        "parameter: text for a number",
        "parameter: fuse",
        "parameter: devices",
        "parameter: config: a value twice",
    ]
    text = told("refine", both(*(TABLE[name][1] for name in names)))
    for name in names:
        assert sum(bool(re.search(TABLE[name][2], line)) for line in text.splitlines()) == 1, (name, text)


def test_shell_metacharacters_stay_text(told: Told, monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    """Every string that a host gives, with all that a shell would run in it."""
    word = "$(touch ran);touch ran|touch ran&`touch ran`\n'touch ran'\"touch ran\""
    for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.setenv(name, word)
    flags = ("in_3dref", "in_mask", "scratch", "mesh", "segmentation", "fuse", "devices", "latent_columns", "config")
    text = told("refine", given(**dict.fromkeys(flags, word)))
    assert "touch ran" in text
    assert not list(Path().rglob("ran"))


NEVER = re.compile(
    r"(eval|exec|os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?)|pty\.spawn|subprocess\.get\w*output|asyncio\.\w*shell"
    r"|pickle\.(load|loads|Unpickler)|(dill|joblib|cloudpickle)\.\w+|yaml\.(unsafe_|full_)?load(_all)?)"
)
NEEDED = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
# a rank's own error, pickled by itself, to see whether it can be sent to the others
KNOWN = {("flex_job/distributed.py", "pickle.loads(pickle.dumps(error))")}


def test_nothing_in_the_packages_calls_a_shell_or_an_unsafe_loader() -> None:
    root = Path(__file__).parents[2]
    found, seen = set(), set()
    for path in [
        path for package in ("job_specs", "flex_job", "integration") for path in (root / package).rglob("*.py")
    ]:
        for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
            name, keywords = ast.unparse(call.func), {ast.unparse(keyword) for keyword in call.keywords}
            seen |= {name} & {"torch.load", "np.load", "yaml.safe_load", "subprocess.run"}
            through_a_shell = any(word.startswith("shell=") and word != "shell=False" for word in keywords)
            if NEVER.fullmatch(name) or through_a_shell or NEEDED.get(name, "") not in keywords | {""}:
                found.add((str(path.relative_to(root)), ast.unparse(call)))
    assert len(seen) == 4  # else the look was at nothing
    assert found <= KNOWN, found - KNOWN


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert len(TABLE) >= 60
