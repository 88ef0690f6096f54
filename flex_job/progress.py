"""How far a job is, as one structured event that hosts show in their own ways. Standard library only."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

__all__ = ["FIGURES", "Progress", "Tracker", "duration"]

FIGURES: Mapping[str, str] = {
    "band_A": "band limit {:.1f} A",
    "loss": "loss {:.5f}",
    "rigidity": "rigidity {:.3g}",
    "latent_spread": "latent spread {:.2f}",
    "motion_A": "motion {:.2f} A rms",
    "change": "FSC changed by {:.4f} at most",
    "rigid_A": "half-maps without motion agree to {:.1f} A",
    "flex_A": "half-maps agree to {:.1f} A",
    "gain_nats": "likelihood gain {:.2f} nats per particle",
}
"""Figures that a stage may tell while it runs, in the order in which they are shown, and how. `loss` is the data term
per Fourier coefficient, in the band of its epoch: one is noise alone. `rigid_A` and `flex_A` are where the FSC
of the half-maps falls below 0.143, while they are solved for and, corrected for the mask, when they are done.
`gain_nats` is over a map without motion, on what the latents were not fitted to."""


@dataclass(frozen=True)
class Progress:
    """One look at a job.

    `stage` is one of the manifest's, `step` what is being done in it. `part` of the stage is done, 0 to 1, None where
    nothing tells; with `at_least` only the most that there may be to do is known, so that more may be done than `part`
    and the end may come before `left_s`. Times are in seconds: `seconds` since the stage began in this run, `left_s` to
    its end at the pace of this run. `figures` by the names of FIGURES, as last told in this stage. `landmark` marks the
    end of a step, `ended` that of the stage. `planned` are the job's stages in order, those that are done with too.
    """

    stage: str
    step: str = ""
    part: float | None = None
    at_least: bool = False
    seconds: float = 0.0
    left_s: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    landmark: bool = False
    ended: bool = False
    planned: tuple[str, ...] = ()

    def percent(self) -> str:
        """Such as 40%, or at least 40%; empty where it is not known."""
        if self.part is None:
            return ""
        return f"{'at least ' if self.at_least else ''}{int(100 * self.part)}%"

    def time_left(self) -> str:
        """Such as 5 min left, or at most 5 min left; empty where it is not known."""
        if self.left_s is None:
            return ""
        return f"{'at most ' if self.at_least else ''}{duration(self.left_s)} left"

    def place(self) -> str:
        """Such as stage 4 of 9; empty where no stages were planned."""
        if self.stage not in self.planned:
            return ""
        return f"stage {self.planned.index(self.stage) + 1} of {len(self.planned)}"

    def told_figures(self) -> list[str]:
        """The figures in words."""
        return [text.format(self.figures[name]) for name, text in FIGURES.items() if name in self.figures]

    def __str__(self) -> str:
        """One line: stage, step, percent, time left and figures, or how long the stage took."""
        if self.ended:
            told = [f"done in {duration(self.seconds)}", *self.told_figures()]
        else:
            told = [self.step, self.percent(), self.time_left(), *self.told_figures()]
        line = ", ".join(text for text in told if text) or "begins"
        return f"{self.stage}: {line}" if self.stage else line


def duration(seconds: float) -> str:
    """In the unit that reads best: 12 s, 5 min, 3.4 h, 2.1 days."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86400:.1f} days"


@dataclass(frozen=True)
class _Stretch:
    """Where in the stage the present work lies, and what it is called."""

    begin: float = 0.0
    end: float = 1.0
    label: str = ""
    at_least: bool = False

    def within(self, begin: float, end: float, label: str, at_least: bool) -> _Stretch:
        width = self.end - self.begin
        joined = ", ".join(text for text in (self.label, label) if text)
        return _Stretch(self.begin + begin * width, self.begin + end * width, joined, self.at_least or at_least)


class Tracker:
    """Puts together what a stage's parts, and their parts, tell of themselves; each `Progress` goes to `show`. Work
    that is done outside of any stage counts as one without a name."""

    def __init__(self, show: Callable[[Progress], None]) -> None:
        self.show = show
        self.planned: tuple[str, ...] = ()
        self._stretch = _Stretch()
        self._stage = ""
        self._began = time.monotonic()
        self._first: tuple[float, float] | None = None  # part and time: the pace is that since then
        self._figures: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage from its beginning to its end; one that is left by an exception has not ended."""
        kept = {name: value for name, value in vars(self).items() if name not in ("show", "planned")}
        self._stage, self._stretch, self._began, self._first, self._figures = (
            name,
            _Stretch(),
            time.monotonic(),
            None,
            {},
        )
        try:
            self._show(Progress(name))
            yield
            seconds = time.monotonic() - self._began
            self._show(Progress(name, part=1.0, seconds=seconds, left_s=0.0, figures=dict(self._figures), ended=True))
        finally:
            vars(self).update(kept)

    @contextmanager
    def part(self, begin: float, end: float, label: str = "", at_least: bool = False) -> Iterator[None]:
        """A stretch of the present work, from `begin` to `end` of it (0 to 1), in which `progress` counts anew."""
        kept, self._stretch = self._stretch, self._stretch.within(begin, end, label, at_least)
        try:
            yield
        finally:
            self._stretch = kept

    def progress(self, part: float, step: str, landmark: bool, figures: Mapping[str, float]) -> None:
        """`part` of the present work is done."""
        now, done = time.monotonic(), self._stretch.within(part, 1.0, step, False)
        self._figures |= figures
        if self._first is None or done.begin < self._first[0]:  # or another piece of work, where there are no stages
            self._first = (done.begin, now)
        first, since = self._first
        left = (now - since) / (done.begin - first) * (1 - done.begin) if done.begin > first else None
        seconds, told = now - self._began, dict(self._figures)
        self._show(Progress(self._stage, done.label, done.begin, done.at_least, seconds, left, told, landmark=landmark))

    def _show(self, progress: Progress) -> None:
        figures = {name: float(value) for name, value in progress.figures.items() if math.isfinite(value)}
        self.show(replace(progress, figures=figures, planned=self.planned))
