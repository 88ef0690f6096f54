"""Settings of a training, chosen by what they predict of held-out images of a sample of the particles.

Candidates are trained on the same particles and tested on the same others (see `validation`), so that two of them are
compared particle by particle. One setting after the other goes up its ladder, from simple to demanding, while that
gains more than chance may give; where the first step up does not, it goes down while that loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.validation.verdict import estimate
from job_specs.parameters import TrainParameters

__all__ = ["FEWEST", "LADDERS", "Choice", "Tried", "at_most", "choose", "is_open"]

LADDERS: Mapping[str, tuple[float, ...]] = {
    "latent_dims": (1, 2, 3, 4, 5, 6),  # whole numbers
    "rigidity": (16.0, 4.0, 1.0, 0.25),
    "band_end": (0.5, 0.65, 0.8),
    "epochs": (6, 12, 24),
}
"""What may be chosen, in this order; the values from the simplest to the most demanding."""

BEGIN = {"latent_dims": 1, "rigidity": 4.0, "band_end": 0.8, "epochs": 6}
FEWEST = 1000  # particles: of fewer, the held-out ones tell candidates apart by chance

UP = {"latent_dims": 2.0}
"""Standard errors of the paired difference by which a step up has to gain; of the other settings one. A latent that
says nothing is a burden to who reads them, and a softer molecule or a longer training is none."""

Gains = NDArray[np.float64]


@dataclass(frozen=True)
class Tried:
    """A candidate and its mean gain over no motion, in nats per held-out particle, with its standard error; and how
    much it gains more than the candidate that was chosen, particle by particle, with the error of that."""

    latent_dims: int
    rigidity: float
    band_end: float
    epochs: int
    gain: float
    error: float
    more: float
    more_error: float

    @classmethod
    def of(cls, values: Sequence[float], gains: Gains, chosen: Gains) -> Tried:
        """With `values` in the order of LADDERS and gains (n,) of the held-out particles, its own and the chosen's."""
        dims, rigidity, band_end, epochs = values
        own, more = estimate(gains), estimate(gains - chosen)
        return cls(int(dims), rigidity, band_end, int(epochs), own.mean, own.error, more.mean, more.error)

    def __str__(self) -> str:
        latents = "1 latent" if self.latent_dims == 1 else f"{self.latent_dims} latents"
        return f"{latents}, rigidity {self.rigidity:g}, band limit {self.band_end:g}, {self.epochs} epochs"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and all that was tried, in that order."""

    latent_dims: int
    rigidity: float
    band_end: float
    epochs: int
    tried: tuple[Tried, ...]

    def is_of(self, tried: Tried) -> bool:
        """Whether that candidate is what was chosen."""
        return all(getattr(self, name) == getattr(tried, name) for name in LADDERS)

    def applied(self, parameters: TrainParameters, part: float = 1.0) -> TrainParameters:
        """`parameters` with all of it filled in, for particles of which the sample was `part`. The flow learns from
        minibatch to minibatch, so that of more particles it needs fewer epochs: as many steps, and never fewer than
        the smallest number there is to choose."""
        epochs = parameters.epochs or max(int(LADDERS["epochs"][0]), math.ceil(self.epochs * part))
        return replace(parameters, **{name: getattr(self, name) for name in LADDERS} | {"epochs": epochs})

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {**vars(self), "tried": [vars(each) for each in self.tried]}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Choice:
        """From its `record`."""
        return cls(**{**record, "tried": tuple(Tried(**each) for each in record["tried"])})

    def __str__(self) -> str:
        chosen = next((str(tried) for tried in self.tried if self.is_of(tried)), "nothing was open")
        return f"chosen by held-out images: {chosen}"


def is_open(parameters: TrainParameters) -> bool:
    """Whether something is left to be chosen."""
    return any(not getattr(parameters, name) for name in LADDERS)


def at_most(parameters: TrainParameters) -> TrainParameters:
    """With the most demanding value where something is left to be chosen."""
    largest = {name: ladder[-1] for name, ladder in LADDERS.items() if not getattr(parameters, name)}
    return replace(parameters, **largest)  # type: ignore[arg-type]


def choose(parameters: TrainParameters, gains_of: Callable[[TrainParameters], Gains]) -> Choice:
    """Fill in what is 0 in `parameters`. `gains_of` trains with the parameters it is given and tells the gain (n,) of
    each held-out particle, the same particles each time, in whatever band it has for all."""
    values: dict[str, Any] = {name: getattr(parameters, name) or BEGIN[name] for name in LADDERS}
    known: dict[tuple[float, ...], Gains] = {}

    def gains(**changes: float) -> Gains:
        candidate = values | changes
        key = tuple(candidate.values())
        if key not in known:
            known[key] = gains_of(replace(parameters, **candidate))
        return known[key]

    for name, ladder in LADDERS.items():
        if getattr(parameters, name):
            continue
        if name == "band_end":
            ladder = tuple(step for step in ladder if step >= parameters.band_start)
        begun = ladder.index(values[name])
        for step in ladder[begun + 1 :]:
            base = gains()
            gained = estimate(gains(**{name: step}) - base)
            if gained.mean <= UP.get(name, 1.0) * gained.error:
                break
            values[name] = step
        if values[name] != ladder[begun]:
            continue
        for step in ladder[:begun][::-1]:
            base = gains()
            if estimate(gains(**{name: step}) - base).mean < 0:
                break
            values[name] = step
    chosen = known.get(tuple(values.values()))
    tried = () if chosen is None else (Tried.of(key, found, chosen) for key, found in known.items())
    return Choice(**values, tried=tuple(tried))
