"""Every reader takes damaged files: it gives a valid object or a ValueError of one line, soon and in little memory.

Sound files are damaged in a few places, and archives inside, where their checksums do not tell. The same damage is done
in every run; FLEX_FUZZ_EXAMPLES=20000 does other and more (`-k star` for one reader).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input_project import MAP, STACK, STAR, cs_bytes, cs_table, make_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from flex_job import checkpoint
from flex_job.manifest import Manifest, _reset_peak_memory, peak_memory_MiB
from flex_job.mesh import TetMesh, read_cryosparc_mesh
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.volume import read_volume
from integration.common.parameters import read_parameters
from integration.cryosparc import read as cryosparc
from integration.relion import read as relion
from integration.relion.write import read_latents
from job_specs.jobs import JOBS

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "flex_hypothesis")  # what it keeps is no part of the project
EXAMPLES = int(os.environ.get("FLEX_FUZZ_EXAMPLES", "0"))
CPU_SECONDS, SECONDS = 3.0, 60.0  # of one example: of work, and of waiting, for the machine may be busy
MEMORY_MIB = 400.0  # over all examples of a reader

PIECES = [
    *(number.to_bytes(width, order) for number in (0, 1, 2**31 - 1, 2**31, 2**32 - 1) for width in (4, 8) for order in
      ("little", "big")),
    *(np.array(number, kind).tobytes() for number in (np.nan, np.inf, -1.0, 1e30, 1e-30) for kind in ("<f4", "<f8")),
    *b"\n|data_\n|loop_\n|_rlnAngleRot #1\n|;\n|'|\"| |nan|-inf|1e308|1e-308|99999999999999999999|-1|0|../../etc/|/dev/"
    b"zero|0@|@|[|{|: |- |&a |*a |!!python/object:os.system |,|\xff\xfe|\x00|\r|O|(|)|.|R|b|cos\nsystem\n|\x8e"
    .split(b"|"),
]  # fmt: skip
PLACES = st.one_of(st.integers(0, 300), st.integers(0, 1 << 20), st.integers(-64, -1))
DAMAGE = st.tuples(
    st.integers(0, 1 << 16),  # which part of an archive
    st.lists(
        st.tuples(
            st.sampled_from(["overwrite", "insert", "cut", "repeat", "end"]),
            PLACES,
            st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=8)),
            st.integers(1, 200),
        ),
        min_size=1,
        max_size=6,
    ),
)


def damaged(sound: bytes, damage: list[tuple[str, int, bytes, int]]) -> bytes:
    raw = bytearray(sound)
    for how, where, piece, count in damage:
        place = where % max(len(raw), 1)
        if how == "overwrite":
            raw[place : place + len(piece)] = piece
        elif how == "insert":
            raw[place:place] = piece * (count if count > 190 else 1)
        elif how == "cut":
            del raw[place : place + count]
        elif how == "repeat":
            raw[place:place] = raw[place : place + count] * 3
        elif count > 150:
            del raw[place:]
    return bytes(raw)


def in_archive(sound: bytes, part: int, damage: list[tuple[str, int, bytes, int]]) -> bytes:
    """One file of a zip archive damaged, under checksums that are right; or the archive itself."""
    with zipfile.ZipFile(io.BytesIO(sound)) as source:
        names = source.namelist()
        chosen = part % (len(names) + 1)
        if chosen == len(names):
            return damaged(sound, damage)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as target:
            for number, name in enumerate(names):
                content = source.read(name)
                target.writestr(name, damaged(content, damage) if number == chosen else content)
    return out.getvalue()


def in_manifest(sound: bytes, part: int, damage: list[tuple[str, int, bytes, int]]) -> bytes:
    """Its text damaged and, if that is still JSON, hashed again."""
    raw = damaged(sound, damage)
    try:
        record = json.loads(raw)
        record.pop("sha256", None)
        record["sha256"] = hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return raw
    return json.dumps(record).encode() if part % 4 else raw


def anywhere(sound: bytes, part: int, damage: list[tuple[str, int, bytes, int]]) -> bytes:
    return damaged(sound, damage)


@dataclass(frozen=True)
class Reader:
    """`read` is called in the project folder with the damaged file in place of the sound one at `name`."""

    name: str
    read: Callable[[Path], object]
    damage: Callable[[bytes, int, list[tuple[str, int, bytes, int]]], bytes] = anywhere
    examples: int = 60


STATE = {
    "rows": torch.arange(5.0),
    "flags": torch.ones(3, dtype=torch.bool),
    "random": torch.Generator().get_state(),
    "nested": {"list": [1, 2.5, None, True], "tuple": (1, "a"), 3: {}},
}


def config(path: Path) -> None:
    _, problems = read_parameters(JOBS["refine"], {"config": str(path)})
    if problems:
        raise InputProblems(problems)


def manifest(path: Path) -> None:
    found = Manifest(path.parent)
    found.is_complete("mesh", {})
    found.changes("mesh", {})
    path.with_name("manifest.previous.json").unlink(missing_ok=True)


def hashed_again(sound: bytes, part: int, damage: list[tuple[str, int, bytes, int]]) -> bytes:
    """A checkpoint's archive damaged under hashes that are right; or the file as it is, which its hash tells."""
    if part % 8 == 0:
        return damaged(sound, damage)
    return as_checkpoint(in_archive(sound[checkpoint.HEAD_BYTES :], part // 8, damage))


def as_checkpoint(payload: bytes) -> bytes:
    digest = hashlib.sha256(b"format 1" + payload).hexdigest()
    return f"flex-job checkpoint, format 000001, sha256 {digest}\n".encode() + payload


def states(path: Path) -> None:
    """Both generations damaged alike: nothing is raised, and what is not used is put aside and told in a line."""
    said: list[str] = []
    kept = checkpoint.Checkpoint(path, "work", said.append)
    content = path.read_bytes()
    kept.previous.write_bytes(content)
    found = kept.load()
    assert all(is_one_line(text) and "is damaged" in text for text in said)
    assert found is None or isinstance(found, dict)
    for left in path.parent.glob(f"{path.stem}*"):
        left.unlink()
    if found is None:
        raise ValueError("not used")


READERS = {
    "star": Reader(STAR, relion.read_consensus, examples=100),
    "optimiser": Reader("run_optimiser.star", lambda path: relion.read_consensus(Path(STAR))),
    "cs": Reader("p.cs", lambda path: cryosparc.read_consensus(path, map_path=MAP)),
    "volume": Reader(MAP, read_volume),
    "stack": Reader(STACK, lambda path: relion.read_consensus(Path(STAR))),
    "mesh": Reader("mesh.npz", TetMesh.load, in_archive),
    "pickle": Reader("mesh.pkl", read_cryosparc_mesh, examples=150),
    "csv": Reader("l.csv", read_latents, examples=150),
    "latents_star": Reader("l.star", read_latents, examples=100),
    "yaml": Reader("c.yaml", config, examples=150),
    "manifest": Reader("job/manifest.json", manifest, in_manifest, examples=100),
    "checkpoint": Reader("checkpoint_x.pt", states, hashed_again, examples=200),
    "model": Reader("Model/flex_model.pt", FlexModel.load, in_archive, examples=100),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("fuzz") / "project")
    (root / "p.cs").write_bytes(cs_bytes(cs_table()))
    (root / "run_optimiser.star").write_text(
        "data_optimiser_general\n\n_rlnSolventMaskName mask.mrc\n_rlnCtfDataArePhaseFlipped 0\n"
    )
    (root / "l.csv").write_text("frame,flexLatent1,flexLatent2\na,0.5,1\nb,-1,2e-1\n")
    (root / "l.star").write_text("data_\nloop_\n_flexLatent1 #1\n_flexLatent2 #2\n0.5 1\n-1 2e-1\n")
    (root / "c.yaml").write_text("# values\nlatent_dims: 2\nrigidity: 1.5\nmesh: mesh.npz\nfuse: [1-2, 2-3]\n")
    (root / "job").mkdir()
    (root / "job/out").write_text("x")
    record = Manifest(root / "job")
    with record.stage("mesh", {}, ["out"]) as results:
        results["vertices"] = 3
    checkpoint.Checkpoint(root / "checkpoint_x.pt", "work").save(STATE)
    return root


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    reader = READERS[name]
    path = project / reader.name
    sound = path.read_bytes()
    outcomes = {"read": 0, "refused": 0}
    reader.read(path)  # the undamaged file, and what is made once
    _reset_peak_memory()
    before = peak_memory_MiB()

    @settings(
        max_examples=EXAMPLES or reader.examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGE)
    def read(damage: tuple[int, list[tuple[str, int, bytes, int]]]) -> None:
        path.write_bytes(reader.damage(sound, *damage))
        began, worked = time.monotonic(), time.process_time()
        try:
            reader.read(path)
            outcomes["read"] += 1
        except InputProblems as error:
            assert error.messages and all(is_one_line(message) for message in error.messages)
            outcomes["refused"] += 1
        except ValueError as error:
            assert is_one_line(str(error)), str(error)
            outcomes["refused"] += 1
        assert time.process_time() - worked < CPU_SECONDS
        assert time.monotonic() - began < SECONDS

    try:
        read()
    finally:
        path.write_bytes(sound)
    assert outcomes["refused"] > 0 or name == "manifest"  # a damaged manifest is put aside, and work is done again
    assert peak_memory_MiB() - before < MEMORY_MIB


def is_one_line(text: str) -> bool:
    return 0 < len(text) < 1500 and text.isprintable()


TEXT = st.text("0123456789.eE+-naifxyo\u00b2\u0663 ,:/~*$;|&`\n\0\x1b'\"\u00e9", min_size=1)


@settings(max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(sorted(JOBS["refine"].declared())), TEXT, min_size=1, max_size=8))
def test_any_text_as_parameters(flags: dict[str, str]) -> None:
    _, problems = read_parameters(JOBS["refine"], flags)
    assert all(is_one_line(message) for message in InputProblems(problems).messages)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(torch.arange(3.0))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.sampled_from(["key", "state", "rows"]), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, deadline=None, database=None)
@given(VALUES, st.one_of(st.just("work"), VALUES), st.booleans())
def test_any_sound_content_as_a_checkpoint(value: object, key: object, with_state: bool) -> None:
    """What torch wrote, under a hash that is right, but not by us: used where it is a state of this work."""
    content = io.BytesIO()
    torch.save({"key": key, "state": value} if with_state else value, content)
    with tempfile.TemporaryDirectory() as folder:
        kept = checkpoint.Checkpoint(Path(folder) / "checkpoint_x.pt", "work")
        kept.path.write_bytes(as_checkpoint(content.getvalue()))
        found = kept.load()
    if not with_state:
        key, value = (value.get("key"), value.get("state")) if isinstance(value, dict) else (None, None)
    ours = isinstance(key, str) and key == "work"
    assert (found is not None) == (ours and isinstance(value, dict))


class Runs:
    """Pickled, a call of the function that would make the file `ran`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def with_pickle(pickled: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    """torch's archive with another pickle in it, or none other and packed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(SOUND)) as source, zipfile.ZipFile(out, "w", how) as target:
        for name in source.namelist():
            target.writestr(name, pickled if pickled and name.endswith("data.pkl") else source.read(name))
    return out.getvalue()


def call(name: bytes) -> bytes:
    """A pickle of a state that `name`(2 ** 29) makes."""
    return b"\x80\x02}(X\x03\0\0\0keyX\x04\0\0\0workX\x05\0\0\0state}X\x04\0\0\0rowsc" + name + b"\nJ\0\0\0\x20\x85Rsu."


SOUND = saved({"key": "work", "state": {"rows": torch.zeros(100_000)}})
HOSTILE = {
    "runs": saved({"key": "work", "state": Runs()}),
    "runs, as a plain pickle": pickle.dumps(Runs()),
    "runs, of protocol 4": with_pickle(pickle.dumps({"key": "work", "state": Runs()}, 4)),
    "a byte array": with_pickle(call(b"builtins\nbytearray")),
    "a byte array by its old name": with_pickle(call(b"__builtin__\nbytearray")),
    "a storage that no file fills": with_pickle(call(b"torch\nFloatStorage")),
    "packed": with_pickle(b"", zipfile.ZIP_DEFLATED),
    "a class of ours": saved({"key": "work", "state": {"mesh": TetMesh}}),
    "a function of torch": saved({"key": "work", "state": {"rows": torch.load}}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_under_a_right_hash(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    kept = checkpoint.Checkpoint(tmp_path / "checkpoint_x.pt", "work", said.append)
    kept.path.write_bytes(as_checkpoint(HOSTILE[name]))
    Path("flex_model.pt").write_bytes(HOSTILE[name])
    _reset_peak_memory()
    before = peak_memory_MiB()
    assert kept.load() is None
    with pytest.raises(ValueError, match="flex_model"):
        FlexModel.load(Path("flex_model.pt"))
    assert peak_memory_MiB() - before < 100
    assert len(said) == 1 and is_one_line(said[0]) and "weights_only" not in said[0]
    assert not Path("ran").exists()


def test_what_they_are_made_of_is_sound(tmp_path: Path) -> None:
    """Negative control of the hostile ones."""
    kept = checkpoint.Checkpoint(tmp_path / "checkpoint_x.pt", "work")
    for content in (SOUND, with_pickle(b"")):
        kept.path.write_bytes(as_checkpoint(content))
        assert kept.load() is not None
