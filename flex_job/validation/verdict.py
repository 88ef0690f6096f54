"""Is the motion supported by the data? The rule, in one place, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Verdict", "estimate", "judge"]

Word = Literal["supported", "not supported", "undecided"]

CONFIDENCE = 1.96
"""Standard errors in the interval that is reported: 95 %."""

SUPPORTED, UNDECIDED = 2.58, 1.96
"""Standard errors that the gain must lie above zero: chance alone gets there once in 200, and once in 40, times."""


@dataclass(frozen=True)
class Estimate:
    """A mean gain in nats per particle with its 95 % confidence interval, and from how many particles."""

    mean: float
    low: float
    high: float
    particles: int

    @property
    def error(self) -> float:
        """Standard error."""
        return (self.high - self.low) / (2 * CONFIDENCE)

    def __str__(self) -> str:
        return f"{self.mean:.2g} nats per particle (95 % interval {self.low:.2g} to {self.high:.2g})"


@dataclass(frozen=True)
class Verdict:
    """The word, why, and what it rests on."""

    verdict: Word
    reason: str
    gain: Estimate
    shuffled: Estimate
    nulls: tuple[Estimate, ...]

    def record(self) -> dict[str, Any]:
        """For validation.json."""
        return asdict(self) | {"unit": "nats per particle", "interval": "95 %"}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Verdict:
        """From its `record`."""
        nulls = tuple(Estimate(**null) for null in record["nulls"])
        return cls(
            record["verdict"], record["reason"], Estimate(**record["gain"]), Estimate(**record["shuffled"]), nulls
        )

    def __str__(self) -> str:
        return f"The motion is {self.verdict} by the data: {self.reason}."


def estimate(gains: NDArray[np.float64]) -> Estimate:
    """Of the gains (n,) of single particles."""
    mean, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    return Estimate(mean, mean - CONFIDENCE * error, mean + CONFIDENCE * error, len(gains))


def judge(gain: Estimate, shuffled: Estimate, nulls: Sequence[Estimate] = ()) -> Verdict:
    """`gain` of the motion over none on images that it was not fitted to; the same with each particle at another's
    latents; and what trainings on rigid simulations gained."""
    error = max(gain.error, 1e-12)
    highest = max((null.mean for null in nulls), default=0.0)
    base = max(0.0, highest)
    gained = f"on {gain.particles} particles that were kept aside it gains {gain}"
    word: Word
    if gain.mean - base > SUPPORTED * error:
        word, reason = "supported", gained
        if nulls:
            reason += f", where {len(nulls)} simulations without motion gained at most {highest:.2g}"
    elif gain.mean > SUPPORTED * error:
        word = "not supported"
        reason = f"{gained}, but simulations without motion gain as much (up to {highest:.2g})"
    elif gain.mean > UNDECIDED * error:
        word, reason = "undecided", f"{gained}, which chance may do; more particles can tell"
    else:
        word, reason = "not supported", f"{gained}, no more than chance gives"
    return Verdict(word, reason, gain, shuffled, tuple(nulls))
