"""The records of all cases as tables in Markdown: `python -m science.table` writes them between the marks of a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from science.cases import CASES, Case, Size

from flex_job.files import written_aside

__all__ = ["put_between_marks", "tables", "write_tables"]

MARKS = ("<!-- figures of make science -->", "<!-- end of figures -->")
PEERS = {"cryodrgn": "cryoDRGN", "recovar": "RECOVAR"}
Record = Mapping[str, Any]


def tables(records: Mapping[str, Record]) -> str:
    """What came out of the cases that have a record, in the order of CASES."""
    done = [(case, records[case.name]) for case in CASES if case.name in records]
    sizes = sorted({record["particles"] for _, record in done})
    count = " or ".join(f"{size:,}" for size in sizes)
    settings = "settings chosen by the data" if all(record["auto"] for _, record in done) else "the usual settings"
    parts = [
        f"{count} particles of 64 px for each case, {settings}, {len(done)} of {len(CASES)} cases.",
        "",
        *_cases(done),
    ]
    if any(record["states"] for _, record in done):
        parts += ["", "Mean FSC with the true map of a state, in the mask of that state:", "", *_states(done)]
    if any("peers" in record for _, record in done):
        parts += ["", "Other methods on the same particles:", "", *_peers(done)]
    return "\n".join(parts) + "\n"


def write_tables(size: Size) -> Path:
    """The tables of all records in the results folder, as table.md there."""
    path = size.results / "table.md"
    with written_aside(path) as file:
        file.write(tables(_records(size)).encode())
    return path


def put_between_marks(page: str, text: str) -> str:
    """A page with what stands between its marks replaced. Raises ValueError where it has none."""
    before, first, rest = page.partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not first or not last:
        raise ValueError(f"a page without the marks {MARKS[0]} and {MARKS[1]}; expected both")
    return f"{before}{first}\n\n{text}\n{last}{after}"


def _records(size: Size) -> dict[str, Record]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(size.results.glob("*.json"))}


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _title(case: Case) -> list[str]:
    return [case.title, f"{case.snr:g}", f"{case.pose_error_deg:g}"]


def _latents(record: Record) -> str:
    if "rank" in record:
        return f"rank {record['rank']:.3f}"
    if "explained" in record:
        return "R^2 " + ", ".join(f"{value:.3f}" for value in record["explained"])
    return ""


def _share(record: Record) -> str:
    shares = [state["share"] for state in record["states"] if "share" in state]
    return f"{sum(shares) / len(shares):.2f}" if shares else ""


def _cases(done: Sequence[tuple[Case, Record]]) -> list[str]:
    head = ["data", "SNR", "pose error, degrees", "latents and truth", "share of the ceiling", "verdict"]
    head += ["gain, nats per particle", "motion, A", "half-map FSC, rigid", "flex", "seconds"]
    rows = []
    for case, record in done:
        gain, half = record["gain"], record["half_fsc"]
        rows.append(
            [
                *_title(case),
                _latents(record),
                _share(record),
                record["verdict"],
                f"{gain['mean']:.2f} ({gain['low']:.2f} to {gain['high']:.2f})",
                f"{record['moved_A']:.1f}",
                f"{half['rigid']:.3f}",
                f"{half['flex']:.3f}",
                f"{record['seconds']['all']:.0f}",
            ]
        )
    return _rows(head, rows)


def _at(latents: Sequence[float]) -> str:
    return ", ".join(f"{value + 0.0:+.1f}" for value in latents)


def _states(done: Sequence[tuple[Case, Record]]) -> list[str]:
    head = ["data", "SNR", "pose error, degrees", "state", "rigid", "flex", "ceiling", "share"]
    rows = []
    for case, record in done:
        for state in record["states"]:
            scores = [f"{state[name]:.3f}" if name in state else "" for name in ("rigid", "flex", "ceiling")]
            part = f"{state['share']:.2f}" if "share" in state else ""
            rows.append([*_title(case), _at(state["latents"]), *scores, part])
    return _rows(head, rows)


def _peers(done: Sequence[tuple[Case, Record]]) -> list[str]:
    head = ["data", "SNR", "method", "R^2 of the true latents", "FSC at the states", "mean", "seconds", "settings"]
    rows = []
    for case, record in done:
        if "peers" not in record:
            continue
        states = "; ".join(_at(state["latents"]) for state in record["states"])
        flex = [state["flex"] for state in record["states"]]
        rigid = [state["rigid"] for state in record["states"]]
        data = [case.title, f"{case.snr:g}"]
        rows.append([*data, "rigid", "", *_scores(rigid), "", f"states {states}"])
        rows.append([*data, "ours", _explained(record), *_scores(flex), f"{record['seconds']['all']:.0f}", ""])
        for name, peer in record["peers"].items():
            scores = _scores([state["score"] for state in peer.get("states", [])])
            note = peer["told"] if "told" in peer else f"failed: {peer['failed']}"
            if "core_seconds" in peer:
                note += f" ({peer['core_seconds'] / 60:.0f} minutes of a core)"
            rows.append([*data, PEERS[name], _explained(peer), *scores, f"{peer['seconds']:.0f}", _cell(note)])
    return _rows(head, rows)


def _explained(record: Record) -> str:
    return ", ".join(f"{value:.3f}" for value in record.get("explained", []))


def _scores(scores: Sequence[float]) -> list[str]:
    """Of every state, and their mean."""
    return [", ".join(f"{score:.3f}" for score in scores), f"{sum(scores) / len(scores):.3f}" if scores else ""]


def _cell(text: str) -> str:
    """What another program said, as it can stand in a table."""
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":
    text = tables(_records(Size()))
    for page in map(Path, sys.argv[1:]):
        content = put_between_marks(page.read_text(), text)
        with written_aside(page) as file:
            file.write(content.encode())
    print(text, end="")
