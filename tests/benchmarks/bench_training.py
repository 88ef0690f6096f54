"""Training and reconstruction of made-up particles: images per second by box, voxels, cells, latents, threads.

Run by `make bench`. Timed is what a job does, reading and CTF included: epochs of `Trainer` without the map's turn, and
passes of the map's solver. Cost should be a straight line in voxels and particles; how straight is printed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from clock import cores, fastest, use_threads
from synthetic import PIXEL_A, ball, ball_mesh, write_stack

from flex_job.events import Events
from flex_job.imaging import ImageModel
from flex_job.levels import band_limit
from flex_job.operator import make_operator, voxel_domain
from flex_job.solver import LeastSquares, moved_vertices
from flex_job.train import Trainer
from flex_job.volume import Volume
from job_specs.parameters import TrainParameters

DENSITY = 1e-3  # so faint that the flow, which finds nothing to follow, stays where it is
QUIET = Events(message=lambda line: None)


@dataclass(frozen=True)
class Trial:
    """One data set: a ball of `radius` (share of the box) on a mesh of `vertices`, `latents` dimensions."""

    box: int = 64
    particles: int = 400
    radius: float = 0.25
    vertices: int = 900
    latents: int = 2
    threads: int = 1

    def trainer(self, folder: Path) -> Trainer:
        use_threads(self.threads)
        stack = write_stack(folder / f"{self.box}_{self.particles}.f16", self.particles, self.box)
        mask = ball(self.box, self.radius * self.box)
        mesh = ball_mesh(self.radius * self.box * PIXEL_A, self.vertices)
        parameters = TrainParameters(latent_dims=self.latents, fixed_latent_epochs=0, map_every=0)
        return Trainer(stack, mesh, Volume(DENSITY * mask.data, PIXEL_A), mask, parameters, QUIET)


def epoch_seconds(trainer: Trainer, epoch: int, repeats: int = 2) -> float:
    """Latents and flow of all particles in the band of that epoch."""

    def run() -> None:
        trainer.epoch = epoch
        trainer.run_epoch()

    return fastest(run, repeats)


def last_band(trainer: Trainer) -> int:
    """The first epoch at the final band limit, the slowest."""
    return int(np.ceil(trainer.parameters.band_epochs * trainer.parameters.epochs))


def pass_seconds(trial: Trial, folder: Path) -> tuple[float, int]:
    """One product of the reconstruction's solver over all particles, on a grid twice as fine; and its voxels."""
    trainer = trial.trainer(folder)
    stack, mesh = trainer.stack, trainer.mesh
    domain = voxel_domain(mesh, trainer.mask, 0.5)
    box, pixel = stack.box, stack.pixel_size_A
    model = ImageModel(
        make_operator(domain), box, stack.band(), stack_box=box, stack_pixel_size_A=pixel, oversampling=2
    )
    positions = moved_vertices(model, trainer.vertices, trainer.flow, trainer.latents)
    problem = LeastSquares(stack, [np.arange(len(stack))], model, [positions], batch_size=50)
    values = problem.zeros() + 1
    return fastest(lambda: problem.product(values), 1), len(domain)


def straight_line(sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """How well cost = fixed + slope x size holds: both, and the largest departure from it."""
    slope, fixed = np.polyfit(sizes, seconds, 1, w=1 / np.array(seconds))
    off = np.abs((fixed + slope * np.array(sizes)) / np.array(seconds) - 1).max()
    return f"{1e3 * fixed:.0f} ms + {1e6 * slope:.3g} us each, off by {100 * off:.0f} % at most"


def by_level(folder: Path) -> None:
    trial = Trial(box=128, particles=200, threads=cores())
    trainer = trial.trainer(folder)
    total = len(trainer.stack)
    print(f"\ntraining, level by level: {trial.box} px, K = {trial.latents}, {trial.threads} threads")
    print(f"{'band / Nyquist':>15}{'grid (px)':>10}{'voxels':>9}{'images/s':>10}")
    times = []
    for epoch in range(last_band(trainer) + 1):
        level = trainer.levels.level(trainer.map, band_limit(trainer.parameters, epoch))
        times.append(epoch_seconds(trainer, epoch, 1))
        band = band_limit(trainer.parameters, epoch)
        print(f"{band:15.2f}{level.model.box:10}{len(level.model.domain):9}{total / times[-1]:10.0f}", flush=True)
    epochs = trainer.parameters.epochs
    whole = sum(times) + (epochs - len(times)) * times[-1]
    print(f"all {epochs} epochs: {epochs * times[-1] / whole:.2f} times faster than at the last level throughout")


def by_size(folder: Path) -> None:
    print("\ntraining at the final band limit, and a pass of the reconstruction's solver (images drawn twice as fine)")
    print(f"{'box':>5}{'K':>3}{'threads':>9}{'voxels':>9}{'training images/s':>19}{'solver images/s':>17}")
    base = Trial()
    trials = [replace(base, box=32), base, replace(base, box=128, particles=100)]
    trials += [replace(base, latents=1), replace(base, latents=5)]
    if cores() > 1:
        trials += [replace(base, threads=cores()), replace(base, box=128, particles=100, threads=cores())]
    for trial in trials:
        trainer = trial.trainer(folder)
        training = trial.particles / epoch_seconds(trainer, last_band(trainer), 1)
        seconds, voxels = pass_seconds(trial, folder)
        solver = trial.particles / seconds
        print(f"{trial.box:5}{trial.latents:3}{trial.threads:9}{voxels:9}{training:19.0f}{solver:17.0f}", flush=True)


def growth(folder: Path) -> None:
    base = Trial()
    print("\ngrowth of an epoch's cost, 1 thread")
    variations: dict[str, list[Trial]] = {
        "particles": [replace(base, particles=n) for n in (200, 400, 800)],
        "radius": [replace(base, box=128, particles=200, radius=r) for r in (0.15, 0.2, 0.25, 0.32)],
        "vertices": [replace(base, vertices=v) for v in (300, 900, 2700)],
        "latents": [replace(base, latents=k) for k in (1, 2, 4, 8)],
    }
    for name, trials in variations.items():
        sizes, seconds = [], []
        for trial in trials:
            trainer = trial.trainer(folder)
            voxels = len(trainer.levels.domain(trial.box))
            sizes.append(voxels if name == "radius" else getattr(trial, name))
            seconds.append(epoch_seconds(trainer, last_band(trainer), 3))
        shown = "voxels" if name == "radius" else name
        pairs = ", ".join(f"{size} {1000 * value:.0f} ms" for size, value in zip(sizes, seconds, strict=True))
        print(f"{shown:10} {pairs}: {straight_line(sizes, seconds)}", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for part in (by_level, by_size, growth):
            part(Path(name))


if __name__ == "__main__":
    main()
