"""The image reader gives what mrcfile gives, for every kind of stack, and finds what is wrong with stacks."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from flex_job import images as module
from flex_job.consensus import Consensus, OpticsGroup
from flex_job.images import ImageReader
from flex_job.stack_header import read_header
from flex_job.volume import Volume

BOX, SMALL = 16, 12


def consensus(stacks: list[Path], stack_index: list[int], image_index: list[int], groups: list[int]) -> Consensus:
    count, zero = len(groups), np.zeros(len(groups))
    return Consensus(
        rotations=np.tile(np.eye(3), (count, 1, 1)),
        origins_A=np.zeros((count, 2)),
        halves=np.ones(count, dtype=np.int8),
        optics_index=np.array(groups, dtype=np.int32),
        optics=(OpticsGroup("a", BOX, 2.0, 300.0, 2.7, 0.1), OpticsGroup("b", SMALL, 3.0, 300.0, 2.7, 0.1)),
        defocus_u_A=zero,
        defocus_v_A=zero,
        defocus_angle_rad=zero,
        phase_shift_rad=zero,
        ctf_bfactor_A2=zero,
        ctf_scale=zero,
        stack_paths=tuple(stacks),
        stack_index=np.array(stack_index, dtype=np.int32),
        image_index=np.array(image_index, dtype=np.int64),
        map=Volume(np.zeros((2, 2, 2), dtype=np.float32), 2.0),
    )


def write_stack(path: Path, data: NDArray[np.generic], extended: bytes = b"") -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_image_stack()
        if extended:
            mrc.set_extended_header(np.frombuffer(extended, dtype="V1"))
    return path


@pytest.fixture
def stack(tmp_path: Path) -> tuple[Path, NDArray[np.float32]]:
    data = np.random.default_rng(0).normal(size=(7, BOX, BOX)).astype(np.float32)
    return write_stack(tmp_path / "a.mrcs", data), data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16, np.int8, np.uint16])
def test_every_data_type_reads_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    monkeypatch.setattr(module, "HALF_PIECE", 100)
    data: NDArray[Any] = np.random.default_rng(1).uniform(0, 100, (5, BOX, BOX)).astype(dtype)
    path = write_stack(tmp_path / "a.mrcs", data, extended=b"x" * 160)
    found = ImageReader(consensus([path], [0] * 3, [4, 0, 4], [0] * 3)).read(np.arange(3))
    assert found.dtype == np.float32
    assert np.array_equal(found, data[[4, 0, 4]].astype(np.float32))


def test_either_byte_order(tmp_path: Path, stack: tuple[Path, NDArray[np.float32]]) -> None:
    path, data = stack
    raw = path.read_bytes()
    words = np.frombuffer(raw, dtype="<u4").byteswap().tobytes()
    (tmp_path / "big.mrcs").write_bytes(words)
    found = ImageReader(consensus([tmp_path / "big.mrcs"], [0], [2], [0])).read([0])
    assert np.array_equal(found[0], data[2])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_any_order_over_several_stacks_leaves_nothing_open(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data = rng.normal(size=(5, 4, BOX, BOX)).astype(np.float32)
    paths = [write_stack(tmp_path / f"{number}.mrcs", block) for number, block in enumerate(data)]
    stack_index, image_index = rng.integers(0, 5, 60), rng.integers(0, 4, 60)
    reader = ImageReader(consensus(paths, stack_index.tolist(), image_index.tolist(), [0] * 60))
    order = rng.permutation(60)
    files, threads = open_files(), threading.active_count()
    for slow in (False, True):
        reader._slow = slow
        assert np.array_equal(reader.read(order), data[stack_index[order], image_index[order]])
    with pytest.raises(ValueError, match=r"no image 5"):
        ImageReader(consensus(paths, [3] * 20, [4] * 20, [0] * 20)).read(np.arange(20))
    assert (open_files(), threading.active_count()) == (files, threads)
    assert reader.read([]).shape == (0, 0, 0)


@pytest.mark.parametrize("run, gap, per_share", [(1 << 24, 1 << 17, 1), (3 * BOX * BOX * 4, 0, 20), (1, 1 << 20, 4)])
def test_wherever_requests_are_cut(
    stack: tuple[Path, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch, run: int, gap: int, per_share: int
) -> None:
    monkeypatch.setattr(module, "RUN_BYTES", run)
    monkeypatch.setattr(module, "GAP_BYTES", gap)
    monkeypatch.setattr(module, "READERS", 20 // per_share)
    numbers = np.random.default_rng(3).integers(0, 7, 20)
    reader = ImageReader(consensus([stack[0]], [0] * 20, numbers.tolist(), [0] * 20))
    reader._slow = True
    assert np.array_equal(reader.read(np.arange(20)), stack[1][numbers])


def test_neighbours_are_one_request_and_short_answers_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(4).normal(size=(40, BOX, BOX)).astype(np.float32)
    path = write_stack(tmp_path / "a.mrcs", data)
    wanted = list(range(20, 40)) + list(range(5))
    reader = ImageReader(consensus([path], [0] * 25, wanted, [0] * 25))
    monkeypatch.setattr(module, "READERS", 1)
    monkeypatch.setattr(module, "GAP_BYTES", 4 * BOX * BOX * 4)
    requests: list[int] = []
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        requests.append(len(buffers[0]))
        return real(descriptor, [buffers[0][:3000]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert np.array_equal(reader.read(np.arange(25)), data[wanted])
    whole = [count for count in requests if count in (5 * BOX * BOX * 4, 20 * BOX * BOX * 4)]
    assert len(whole) == 2


def test_two_thousand_small_stacks(tmp_path: Path) -> None:
    """One file per micrograph, as RELION's extraction leaves them."""
    stacks, images = 2000, 2
    data = np.random.default_rng(5).normal(size=(stacks, images, SMALL, SMALL)).astype(np.float16)
    header = bytearray(write_stack(tmp_path / "0.mrcs", data[0]).read_bytes()[:1024])
    paths = [tmp_path / f"{number}.mrcs" for number in range(stacks)]
    for path, block in zip(paths, data, strict=True):
        path.write_bytes(bytes(header) + block.tobytes())
    stack_index, image_index = np.divmod(np.arange(stacks * images), images)
    particles = consensus(paths, stack_index.tolist(), image_index.tolist(), [1] * len(stack_index))
    reader = ImageReader(particles)
    assert reader.check() == []
    order = np.random.default_rng(6).permutation(len(particles))
    for slow in (False, True):
        reader._slow = slow
        assert np.array_equal(reader.read(order), data.reshape(-1, SMALL, SMALL)[order].astype(np.float32))


def test_threads_read_where_requests_wait(
    stack: tuple[Path, NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, readers = os.preadv, set()

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        readers.add(threading.get_ident())
        time.sleep(0.005)
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    reader = ImageReader(consensus([stack[0]], [0] * 7, list(range(7)), [0] * 7))
    for _ in range(2):
        assert np.array_equal(reader.read(np.arange(7)), stack[1])
    assert len(readers) > 1


def test_one_optics_group_at_a_time(tmp_path: Path, stack: tuple[Path, NDArray[np.float32]]) -> None:
    small = write_stack(tmp_path / "b.mrcs", np.ones((2, SMALL, SMALL), dtype=np.float32))
    reader = ImageReader(consensus([stack[0], small], [0, 1], [0, 0], [0, 1]))
    assert reader.check() == []
    assert reader.read([1]).shape == (1, SMALL, SMALL)
    with pytest.raises(ValueError, match="2 optics groups"):
        reader.read([0, 1])


def test_good_stacks_have_no_problems(stack: tuple[Path, NDArray[np.float32]]) -> None:
    assert ImageReader(consensus([stack[0]], [0, 0], [0, 6], [0, 0])).check() == []


def test_problems_are_found_and_told(tmp_path: Path, stack: tuple[Path, NDArray[np.float32]]) -> None:
    good, data = stack
    (tmp_path / "cut.mrcs").write_bytes(good.read_bytes()[: 1024 + 3 * BOX * BOX * 4 + 5])
    (tmp_path / "text.mrcs").write_text("not an image\n" * 200)
    (tmp_path / "short.mrcs").write_text("x")
    stacks = [good, tmp_path / "none.mrcs", tmp_path / "cut.mrcs", tmp_path / "text.mrcs", tmp_path / "short.mrcs"]
    expected = {
        (1, 0, 0): "no such image stack",
        (2, 0, 0): "truncated, 3 of the 7",
        (3, 0, 0): "not an MRC",
        (4, 0, 0): "shorter than an MRC header",
        (0, 7, 0): "number 8 is asked for, the stack holds 7",
        (0, -1, 0): "number 0 is asked for",
        (0, 0, 1): f"images of {BOX} x {BOX} pixels; expected {SMALL} x {SMALL}",
    }
    for (stack_index, image, group), text in expected.items():
        problems = ImageReader(consensus(stacks, [stack_index], [image], [group])).check()
        assert len(problems) == 1 and text in problems[0], problems
        if stack_index != 2:
            with pytest.raises(ValueError, match=str(stacks[stack_index])):
                ImageReader(consensus(stacks, [stack_index], [image], [group])).read([0])
    with pytest.raises(ValueError, match="truncated, image 4"):
        ImageReader(consensus(stacks, [2], [3], [0])).read([0])

    many = [tmp_path / f"none{number}.mrcs" for number in range(30)]
    problems = ImageReader(consensus(many, list(range(30)), [0] * 30, [0] * 30)).check()
    assert len(problems) < 10 and "25 more" in problems[-1]

    zero = consensus([good], [0], [0], [0])
    zero = replace(zero, optics=(replace(zero.optics[0], pixel_size_A=0.0),))
    assert any("pixel size 0" in problem for problem in ImageReader(zero).check())


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_nan_images_are_found_in_the_sample(tmp_path: Path, stack: tuple[Path, NDArray[np.float32]]) -> None:
    data = stack[1].copy()
    data[4, 3, 3] = np.nan
    path = write_stack(tmp_path / "nan.mrcs", data)
    (problem,) = ImageReader(consensus([path], [0] * 7, list(range(7)), [0] * 7)).check()
    assert "1 of 7 sampled images" in problem and f"5@{path}" in problem


def test_header_of_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder; expected"):
        read_header(tmp_path)
