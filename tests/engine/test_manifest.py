"""The manifest: what is complete stays complete, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flex_job import manifest as manifest_module
from flex_job.manifest import (
    Change,
    Manifest,
    Settings,
    file_hash,
    key_of,
    peak_memory_MiB,
    recorded,
    stacks_hash,
    versions,
)
from flex_job.problems import InputProblems

K1, K2 = {"epochs": 12, "input a.star": "8f"}, {"epochs": 20, "input a.star": "8f"}


def run_stage(folder: Path, name: str = "train", settings: Settings = K1, output: str = "model.pt") -> Manifest:
    manifest = Manifest(folder)
    with manifest.stage(name, settings, [output]) as results:
        (folder / output).write_text("model")
        results["loss"] = 0.5
    return manifest


def test_a_finished_stage_is_complete_for_the_next_process(tmp_path: Path) -> None:
    assert run_stage(tmp_path).is_complete("train", K1)
    again = Manifest(tmp_path)
    assert again.is_complete("train", K1)
    assert again.results("train") == {"loss": 0.5}
    record = again.record["stages"]["train"]
    assert record["seconds"] >= 0 and record["peak_MiB"] >= 0 and list(record["outputs"]) == ["model.pt"]


def test_other_settings_a_missing_output_or_another_name_is_not_complete(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path)
    assert not manifest.is_complete("train", K2)
    assert not manifest.is_complete("mesh", K1)
    (tmp_path / "model.pt").unlink()
    again = Manifest(tmp_path)
    assert not again.is_complete("train", K1) and again.damage == []


def test_an_output_that_is_not_what_was_written_is_put_aside(tmp_path: Path) -> None:
    run_stage(tmp_path)
    (tmp_path / "model.pt").write_text("modem")
    again = Manifest(tmp_path)
    assert not again.is_complete("train", K1)
    assert len(again.damage) == 1 and "model.pt.damaged, and the stage train is run again" in again.damage[0]
    assert (tmp_path / "model.pt.damaged").read_text() == "modem" and not (tmp_path / "model.pt").exists()


def test_changes_name_what_was_and_what_is(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path)
    assert manifest.changes("train", K1) == [] and manifest.changes("mesh", K2) == []
    changes = Manifest(tmp_path).changes("train", {"epochs": 20, "seed": 0, "input b.star": "9a"})
    assert [(change.name, change.before, change.now) for change in changes] == [
        ("epochs", 12, 20),
        ("input a.star", "8f", None),
        ("seed", None, 0),
        ("input b.star", None, "9a"),
    ]
    assert [str(change) for change in changes] == [
        "epochs: 12 before, 20 now",
        "input a.star: one content before, not used now",
        "seed: nothing before, 0 now",
        "input b.star: not used before, one content now",
    ]
    assert str(Change("input a.star", "8f", "9a")) == "input a.star: another content than before"
    with pytest.raises(RuntimeError), manifest.stage("train", K2, ["model.pt"]):
        raise RuntimeError  # begun counts: there may be a checkpoint
    assert [change.now for change in Manifest(tmp_path).changes("train", K1)] == [12]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_stage_that_fails_is_not_complete_even_if_it_was_before(tmp_path: Path, error: type[BaseException]) -> None:
    manifest = run_stage(tmp_path)
    with pytest.raises(error), manifest.stage("train", K1, ["model.pt"]):
        # A process that dies here leaves this state on disk.
        assert not Manifest(tmp_path).is_complete("train", K1)
        raise error
    assert not manifest.is_complete("train", K1)
    assert not Manifest(tmp_path).is_complete("train", K1)


def test_a_stage_that_found_its_input_bad_leaves_nothing_that_a_better_one_would_change(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    with pytest.raises(InputProblems), manifest.stage("prep", K1, []):
        raise InputProblems(["an image is empty"])
    assert Manifest(tmp_path).changes("prep", K2) == []


def test_a_stage_leaves_others_and_descriptions_alone(tmp_path: Path) -> None:
    manifest = run_stage(tmp_path, "mesh", {"cells": 3}, "mesh.npz")
    manifest.describe(seed=7, parameters={"train": {"epochs": 3}}, inputs={"a.star": Path("b")})
    run_stage(tmp_path)
    again = Manifest(tmp_path)
    assert again.is_complete("mesh", {"cells": 3}) and again.is_complete("train", K1)
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
    assert Manifest(tmp_path).is_complete("train", K1)
    Manifest(tmp_path).describe(seed=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "manifest.previous.json", "model.pt"]


def damaged(content: bytes) -> list[bytes]:
    """What disks and people make of a manifest."""
    flips = [content[:at] + bytes([content[at] ^ 0x08]) + content[at + 1 :] for at in range(3, len(content), 97)]
    others = [b"", content[:200], b"\xff\xfe\x00", b"[]", b"null", b'"text"', b'{"schema": 2}', b"[" * 100_000]
    return [*flips, *others, content.replace(b"12", b"13"), content.replace(b'"schema": 2', b'"schema": 1')]


def test_a_damaged_manifest_is_put_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    run_stage(tmp_path).describe(seed=3)
    whole, before = (tmp_path / "manifest.json").read_bytes(), (tmp_path / "manifest.previous.json").read_bytes()
    for content in damaged(whole):
        (tmp_path / "manifest.json").write_bytes(content)
        again = Manifest(tmp_path)
        assert again.is_complete("train", K1) and "seed" not in again.record, content
        assert len(again.damage) == 1 and "manifest.json.damaged" in again.damage[0]
    (tmp_path / "manifest.previous.json").write_bytes(before[:-100])
    assert not Manifest(tmp_path).is_complete("train", K1)
    assert run_stage(tmp_path).is_complete("train", K1)


def test_the_record_of_another_job_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    assert recorded(tmp_path) == {}
    run_stage(tmp_path).describe(seed=3)
    assert recorded(tmp_path)["seed"] == 3
    (tmp_path / "manifest.json").write_text("{")
    assert "seed" not in recorded(tmp_path) and recorded(tmp_path)["stages"]
    (tmp_path / "manifest.previous.json").write_text("{")
    with pytest.raises(ValueError, match="not known what the job there was made from"):
        recorded(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == "{"


def test_a_newer_manifest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "SCHEMA", 3)
        run_stage(tmp_path)
        newer = Manifest(tmp_path)
        newer.record["schema"] = 3
        newer.describe(seed=1)
    with pytest.raises(InputProblems, match="newer version of flex-job .schema 3, this version reads 2"):
        Manifest(tmp_path)
    assert (tmp_path / "manifest.json").exists()


def test_forgetting_removes_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the user's")
    run_stage(tmp_path).forget()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert not Manifest(tmp_path).is_complete("train", K1)


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
