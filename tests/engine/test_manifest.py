"""The manifest: what is complete stays complete, and nothing else does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flex_job.manifest import Manifest, file_hash, key_of, peak_memory_MiB, stacks_hash, versions


def run_stage(folder: Path, name: str = "train", key: str = "k1", output: str = "model.pt") -> Manifest:
    manifest = Manifest(folder)
    with manifest.stage(name, key, [output]) as results:
        (folder / output).write_text("model")
        results["loss"] = 0.5
    return manifest


def test_a_finished_stage_is_complete_for_the_next_process(tmp_path: Path) -> None:
    assert run_stage(tmp_path).is_complete("train", "k1")
    again = Manifest(tmp_path)
    assert again.is_complete("train", "k1")
    assert again.results("train") == {"loss": 0.5}
    record = again.record["stages"]["train"]
    assert record["seconds"] >= 0 and record["peak_MiB"] >= 0 and record["outputs"] == ["model.pt"]


def test_another_key_a_missing_output_or_another_name_is_not_complete(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path)
    assert not manifest.is_complete("train", "k2")
    assert not manifest.is_complete("mesh", "k1")
    (tmp_path / "model.pt").unlink()
    assert not Manifest(tmp_path).is_complete("train", "k1")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stage_that_fails_is_not_complete_even_if_it_was_before(tmp_path: Path, error: type[BaseException]) -> None:
    manifest = run_stage(tmp_path)
    with pytest.raises(error), manifest.stage("train", "k1", ["model.pt"]):
        # A process that dies here leaves this state on disk.
        assert not Manifest(tmp_path).is_complete("train", "k1")
        raise error
    assert not manifest.is_complete("train", "k1")
    assert not Manifest(tmp_path).is_complete("train", "k1")


def test_a_stage_leaves_others_and_descriptions_alone(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path, "mesh", "m", "mesh.npz")
    manifest.describe(seed=7, parameters={"train": {"epochs": 3}}, inputs={"a.star": Path("b")})
    run_stage(tmp_path)
    again = Manifest(tmp_path)
    assert again.is_complete("mesh", "m") and again.is_complete("train", "k1")
    assert again.record["seed"] == 7 and again.record["parameters"]["train"]["epochs"] == 3


def test_writing_is_aside_and_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between writing and renaming leaves the old manifest whole."""
    run_stage(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()

    def crash(*_: object) -> None:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no more"):
            Manifest(tmp_path).describe(seed=8)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert Manifest(tmp_path).is_complete("train", "k1")
    Manifest(tmp_path).describe(seed=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.pt"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"schema": 1, "stages": {"train": {"key": "k1", "outp',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'"text"',
        b'{"schema": 1}',
        b'{"schema": 1, "stages": []}',
        b'{"schema": 999, "stages": {"train": {"key": "k1", "outputs": []}}}',
        b'{"schema": 1, "stages": {"train": {}}}',
        b'{"schema": 1, "stages": {"train": null}}',
    ],
)
def test_a_damaged_manifest_costs_only_the_work_it_described(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert not Manifest(tmp_path).is_complete("train", "k1")
    assert run_stage(tmp_path).is_complete("train", "k1")
    assert json.loads((tmp_path / "manifest.json").read_text())["schema"] == 1


def test_keys_tell_any_difference_and_no_other() -> None:
    key = key_of("train", {"epochs": 3, "units": 64}, [1.0, 2.0], None)
    assert key == key_of("train", {"units": 64, "epochs": 3}, [1.0, 2.0], None)
    assert len(key) == 16
    others = [
        key_of("train", {"epochs": 4, "units": 64}, [1.0, 2.0], None),
        key_of("train", {"epochs": 3, "units": 64}, [2.0, 1.0], None),
        key_of("train", {"epochs": 3, "units": 64}, [1.0, 2.0]),
        key_of("mesh", {"epochs": 3, "units": 64}, [1.0, 2.0], None),
        key_of("train", {"epochs": 3, "units": 64}, 1.0, 2.0, None),
    ]
    assert len({key, *others}) == 6


def test_file_hash_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"a" * 5000)
    whole = file_hash(path)
    assert file_hash(path) == whole
    path.write_bytes(b"a" * 4999 + b"b")
    assert file_hash(path) != whole
    path.write_bytes(b"a" * 4999)
    assert file_hash(path) != whole


@pytest.fixture
def stacks(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.mrcs" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (number * 5000))
        os.utime(path, ns=(0, 10**18))
    return paths


def test_stacks_are_known_by_size_time_and_ends(stacks: list[Path]) -> None:
    hashes = {stacks_hash(stacks)}
    assert {stacks_hash(stacks)} == hashes
    hashes.add(stacks_hash(stacks[:4]))
    hashes.add(stacks_hash(stacks[::-1]))
    os.utime(stacks[2], ns=(0, 10**18 + 1))
    hashes.add(stacks_hash(stacks))
    for number, content in ((1, b"x" + stacks[1].read_bytes()[1:]), (3, stacks[3].read_bytes()[:-1] + b"x")):
        stacks[number].write_bytes(content)
        os.utime(stacks[number], ns=(0, 10**18))
        hashes.add(stacks_hash(stacks))
    stacks[4].write_bytes(bytes([4]) * 20001)
    os.utime(stacks[4], ns=(0, 10**18))
    hashes.add(stacks_hash(stacks))
    moved = stacks[0].rename(stacks[0].with_name("other.mrcs"))
    hashes.add(stacks_hash([moved, *stacks[1:]]))
    assert len(hashes) == 8
    # what this does not see, and why the time of modification must stay in it
    stacks[4].write_bytes(bytes([4]) * 10000 + b"x" + bytes([4]) * 10000)
    os.utime(stacks[4], ns=(0, 10**18))
    assert stacks_hash([moved, *stacks[1:]]) in hashes


def test_little_is_read_of_a_stack(stacks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        read.append(count)
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    stacks_hash(stacks)
    assert len(read) <= 2 * len(stacks) and max(read) <= 1 << 16
    with pytest.raises(FileNotFoundError):
        stacks_hash([*stacks, stacks[0].with_name("none.mrcs")])


def test_versions_and_memory_are_told() -> None:
    found = versions()
    assert {"python", "numpy", "torch", "numba"} <= set(found) and all(found.values())
    assert peak_memory_MiB() >= 0
