"""Number of latents and rigidity, chosen by what they predict of held-out images of a sample of the particles.

Candidates are trained on the same particles and tested on the same others (see `validation`), so that two of them are
compared particle by particle. Latents are added while they gain significantly. Of rigidities as good as the best,
within its error, the stiffest is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job_specs.parameters import TrainParameters

__all__ = ["LARGEST_K", "RIGIDITIES", "Choice", "Tried", "choose", "is_open"]

LARGEST_K = 6
RIGIDITIES = (8.0, 2.0, 0.5)
"""From stiff to soft; the second is the one that latents are counted with."""

SIGNIFICANT = 2.0
"""Standard errors of the paired difference by which one more latent has to gain."""


@dataclass(frozen=True)
class Tried:
    """A candidate and its mean gain over no motion, in nats per held-out particle, with its standard error."""

    latent_dims: int
    rigidity: float
    gain: float
    error: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and all that was tried."""

    latent_dims: int
    rigidity: float
    tried: tuple[Tried, ...]

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {**vars(self), "tried": [vars(each) for each in self.tried]}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Choice:
        """From its `record`."""
        return cls(record["latent_dims"], record["rigidity"], tuple(Tried(**each) for each in record["tried"]))

    def __str__(self) -> str:
        tried = ", ".join(f"K={t.latent_dims} rigidity {t.rigidity:g}: {t.gain:.2f}" for t in self.tried)
        return (
            f"chosen by held-out images: {self.latent_dims} latents, rigidity {self.rigidity:g} "
            f"(gain in nats per particle of {tried})"
        )


def is_open(parameters: TrainParameters) -> bool:
    """Whether something is left to be chosen."""
    return parameters.latent_dims == 0 or parameters.rigidity == 0


def choose(parameters: TrainParameters, gains_of: Callable[[TrainParameters], NDArray[np.float64]]) -> Choice:
    """Fill in `latent_dims` and `rigidity` where they are 0. `gains_of` trains with the parameters it is given and
    tells the gain (n,) of each held-out particle, the same particles each time."""
    tried: list[Tried] = []
    known: dict[tuple[int, float], NDArray[np.float64]] = {}

    def gains(latent_dims: int, rigidity: float) -> NDArray[np.float64]:
        key = latent_dims, rigidity
        if key not in known:
            known[key] = gains_of(replace(parameters, latent_dims=latent_dims, rigidity=rigidity))
            mean, error = _mean_and_error(known[key])
            tried.append(Tried(latent_dims, rigidity, mean, error))
        return known[key]

    dims, rigidity = parameters.latent_dims, parameters.rigidity or RIGIDITIES[1]
    if not dims:
        dims = 1
        while dims < LARGEST_K:
            more, error = _mean_and_error(gains(dims + 1, rigidity) - gains(dims, rigidity))
            if more <= SIGNIFICANT * error:
                break
            dims += 1
    if not parameters.rigidity:
        rigidity = _stiffest_of_the_best(RIGIDITIES, [gains(dims, each) for each in RIGIDITIES])
    return Choice(dims, rigidity, tuple(tried))


def _stiffest_of_the_best(rigidities: Sequence[float], gains: Sequence[NDArray[np.float64]]) -> float:
    best = max(gains, key=lambda each: float(each.mean()))
    for rigidity, each in zip(rigidities, gains, strict=True):
        lost, error = _mean_and_error(best - each)
        if lost <= error:
            return rigidity
    raise AssertionError("the best is as good as itself")


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
