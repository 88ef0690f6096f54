"""Checkpoints: whole or not used, never of other work, the one before always at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flex_job import checkpoint as module
from flex_job.checkpoint import Checkpoint, Saver
from flex_job.distributed import Group
from flex_job.events import Events, StopRequested
from flex_job.problems import InputProblems


def state(number: int) -> dict[str, object]:
    return {"rows": torch.arange(5.0) + number, "nested": {"list": [1, 2.5, None]}, "text": f"state {number}"}


def saved(folder: Path, *numbers: int, key: str = "work") -> tuple[Checkpoint, list[str]]:
    said: list[str] = []
    kept = Checkpoint(folder / "checkpoint_x.pt", key, said.append)
    for number in numbers:
        kept.save(state(number))
    return kept, said


def number_of(found: dict[str, object] | None) -> int | None:
    if found is None:
        return None
    number = int(str(found["text"]).split()[1])
    assert torch.equal(found["rows"], state(number)["rows"]) and found["nested"] == state(number)["nested"]  # type: ignore[arg-type]
    return number


def test_the_latest_of_two_generations_is_loaded(tmp_path: Path) -> None:
    assert saved(tmp_path)[0].load() is None
    kept, said = saved(tmp_path, 1, 2, 3)
    assert number_of(kept.load()) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_x.pt", "checkpoint_x.previous.pt"}
    kept.path.unlink()  # a kill between the two renames leaves this
    assert number_of(kept.load()) == 2 and said == []
    kept.clear()
    assert kept.load() is None and list(tmp_path.iterdir()) == []


def flipped(place: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        at = min(int(place * len(content)), len(content) - 1)
        return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]

    return flip


@pytest.mark.parametrize(
    "damage",
    [
        *(flipped(place) for place in (0, 0.03, 0.06, 0.2, 0.4, 0.6, 0.8, 1)),
        *(lambda content, part=part: content[: int(part * len(content))] for part in (0, 0.05, 0.5, 0.999)),
        lambda content: content + b"more",
        lambda content: b"something else entirely\n",
    ],
)
def test_a_damaged_one_is_put_aside_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    kept, said = saved(tmp_path, 1, 2)
    kept.path.write_bytes(damage(kept.path.read_bytes()))
    assert number_of(kept.load()) == 1
    assert len(said) == 1 and "is damaged" in said[0] and "checkpoint_x.pt.damaged" in said[0]
    assert not kept.path.exists() and (tmp_path / "checkpoint_x.pt.damaged").exists()
    kept.previous.write_bytes(damage(kept.previous.read_bytes()))
    assert kept.load() is None and len(said) == 2


def test_every_byte_counts(tmp_path: Path) -> None:
    kept, _ = saved(tmp_path, 1)
    content = kept.path.read_bytes()
    for place in np.random.default_rng(0).integers(len(content), size=60):
        kept.path.write_bytes(flipped(place / len(content))(content))
        assert kept.load() is None
    kept.path.write_bytes(content)
    assert number_of(kept.load()) == 1


def test_other_work_is_passed_over(tmp_path: Path) -> None:
    kept, _ = saved(tmp_path, 1)
    other, said = saved(tmp_path, 2, key="other work")
    assert number_of(other.load()) == 2 and number_of(kept.load()) == 1
    kept.save(state(3))
    assert number_of(kept.load()) == 3 and number_of(other.load()) == 2 and said == []


def test_parts_have_files_and_keys_of_their_own_and_go_with_the_whole(tmp_path: Path) -> None:
    kept, _ = saved(tmp_path, 1)
    neighbour = Checkpoint(tmp_path / "checkpoint_x_full.pt", "work")
    neighbour.save(state(7))
    for number in (1, 2):
        kept.part(f"half{number}", "epoch 3").save(state(number))
    assert number_of(kept.part("half1", "epoch 3").load()) == 1
    assert kept.part("half1", "epoch 4").load() is None
    kept.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_x_full.pt"}


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 2)
        kept, said = saved(tmp_path, 1)
    with pytest.raises(InputProblems, match=r"format 2; this version reads format 1.*--restart"):
        kept.load()
    assert kept.path.exists() and said == []
    # what only looks newer, for its first line is damaged, is not taken for it
    old, said = saved(tmp_path, 3)
    old.path.write_bytes(old.path.read_bytes().replace(b"format 000001", b"format 000009", 1))
    old.previous.unlink()
    assert old.load() is None and "is damaged" in said[0]


def test_a_crash_while_writing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, _ = saved(tmp_path, 1, 2)

    def crash(*_: object) -> None:
        raise OSError("no space")

    for module_, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(module_, name, crash)
            with pytest.raises(OSError, match="no space"):
                kept.save(state(3))
        assert number_of(kept.load()) == 2
        assert not list(tmp_path.glob(".*"))


class _Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, said = saved(tmp_path)
    kept.save({"flow": _Payload()})
    assert kept.load() is None and "is damaged" in said[0]
    assert "executed" not in capsys.readouterr().out


def test_a_state_is_saved_at_a_stop_and_when_it_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[int] = []
    wanted = iter([False] * 70 + [True])
    monkeypatch.setattr(module, "SAVE_EVERY_S", -1.0)
    saver = Saver(lambda: saves.append(1), Group(), Events(should_stop=lambda: next(wanted)))
    seen = 0
    with pytest.raises(StopRequested):
        for _ in saver.checked(np.arange(2) for _ in range(100)):
            seen += 1
    assert seen == 70 and len(saves) == 70 // module.ASK_EVERY + 1
    monkeypatch.setattr(module, "SAVE_EVERY_S", 600.0)
    saves.clear()
    saver = Saver(lambda: saves.append(1), Group(), Events())
    assert sum(1 for _ in saver.checked(np.arange(2 * (i % 2)) for i in range(100))) == 50 and not saves


def test_the_first_line_is_plain_text(tmp_path: Path) -> None:
    kept, _ = saved(tmp_path, 1)
    with kept.path.open("rb") as file:
        assert re.fullmatch(rb"flex-job checkpoint, format 000001, sha256 [0-9a-f]{64}\n", file.readline())
