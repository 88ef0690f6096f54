"""Which share of a training's time each of its visits to the particles takes, for who waits for it."""

from __future__ import annotations

from flex_job.levels import band_limit
from flex_job.linear_start import SAMPLE
from job_specs.parameters import TrainParameters

__all__ = ["TrainingSchedule"]

DIRECTIONS, MAP, LAST = 5.0, 0.8, 1.3
"""Costs of the directions of a linear start, of a map and of the last visit, in those of an epoch of the same particles
in the same band (measured, 6,000 particles of 64 px on two cores)."""

Stretch = tuple[float, float]


class TrainingSchedule:
    """Stretches of a training, from 0 to 1. An epoch costs as many Fourier coefficients as its band has, about the
    square of its limit, and something that does not depend on it; a map that is solved for after it belongs to it."""

    def __init__(self, parameters: TrainParameters, particles: int) -> None:
        self.parameters = p = parameters
        linear, sample = p.latent_start == "linear", min(1.0, SAMPLE / max(1, particles))
        costs = [linear * sample * DIRECTIONS * self._cost(p.band_start), linear * self._cost(p.band_start)]
        for epoch in range(p.epochs):
            costs.append(self._cost(band_limit(p, epoch)) * (1 + MAP * self.map_follows(epoch)))
        costs.append(LAST * self._cost(p.band_end))
        ends = [sum(costs[:number]) / sum(costs) for number in range(1, len(costs) + 1)]
        self._stretches = list(zip([0.0, *ends[:-1]], ends, strict=True))

    def map_follows(self, epoch: int) -> bool:
        """Whether the map is solved for after this epoch, the first being 0."""
        p = self.parameters
        done = epoch + 1
        return p.map_every > 0 and (
            done == p.epochs or (done >= p.fixed_latent_epochs and (done - p.fixed_latent_epochs) % p.map_every == 0)
        )

    @property
    def start(self) -> Stretch:
        """The visit that ends a linear start, after its directions were found."""
        return self._stretches[1]

    @property
    def last(self) -> Stretch:
        """The last visit of the latents."""
        return self._stretches[-1]

    def epoch(self, number: int) -> Stretch:
        """The visit of an epoch, the first being 0, without the map after it."""
        begin, end = self._stretches[2 + number]
        return begin, begin + (end - begin) / (1 + MAP * self.map_follows(number))

    def map(self, number: int) -> Stretch:
        """The map after an epoch."""
        return self.epoch(number)[1], self._stretches[2 + number][1]

    def _cost(self, band: float) -> float:
        return 0.2 + (band / self.parameters.band_end) ** 2
