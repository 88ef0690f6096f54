"""Training (paper, "Optimization of flow and structure"): latents, flow and map from a particle stack.

One epoch visits all particles in minibatches: latent inference for the minibatch, then one step of the flow at
latents drawn from their posterior. Every few epochs the map is solved for, with latents and flow fixed. The band
limit rises from epoch to epoch, and box and voxels are as coarse as the band allows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.files import written_aside
from flex_job.flow import FlowGenerator
from flex_job.fourier import fourier_resize, low_pass
from flex_job.fsc import fsc, shell_index
from flex_job.imaging import ImageModel
from flex_job.latents import coordinate_descent, gauss_newton
from flex_job.linear_start import linear_start
from flex_job.mesh import TetMesh
from flex_job.model import FlexModel
from flex_job.operator import MASK_LEVEL, VoxelDomain, voxel_domain
from flex_job.particles import Batch, ParticleStack
from flex_job.rigidity import Rigidity
from flex_job.sharpen import fsc_weights
from flex_job.solver import LeastSquares, solve
from flex_job.volume import Volume
from job_specs.parameters import TrainParameters

__all__ = ["Trainer", "train"]

HISTORY = ("band limit (A)", "data term per coefficient", "rigidity", "latent spread", "posterior std", "motion (A)")
BAND_OF_BOX = 0.8  # of Nyquist: up to there the spline on the plain grid is good to a few per cent
RIGIDITY_SAMPLE = 8  # latents of a minibatch that the rigidity prior is evaluated at
MAP_ITERATIONS = 2
FAINT = 0.02  # of the largest density
GIVEN_VARIANCE = 0.1  # of latents that another method found, which come without one


@dataclass(frozen=True)
class _Level:
    """Voxels and images at one box, and the canonical map's values there."""

    box: int
    model: ImageModel
    values: NDArray[np.float32]


class Trainer:
    """The state of a training and its steps. `map` is the canonical map at the stack's box."""

    def __init__(
        self,
        stack: ParticleStack,
        mesh: TetMesh,
        consensus_map: Volume,
        mask: Volume,
        parameters: TrainParameters,
        events: Events,
        *,
        seed: int = 0,
        checkpoint: Path | None = None,
    ) -> None:
        """`consensus_map` in the stack's units of density and box; `mask` its mask (same box)."""
        self.stack, self.mesh, self.parameters, self.events = stack, mesh, parameters, events
        self.seed, self.checkpoint = seed, checkpoint
        self.mask = mask
        self.map = consensus_map
        self.rigidity = Rigidity(mesh)
        self.vertices = torch.from_numpy(mesh.vertices_A.astype(np.float32))
        torch.manual_seed(seed)
        self.flow = FlowGenerator(
            parameters.latent_dims, parameters.flow_layers, parameters.flow_units, torch.from_numpy(mesh.motion)
        )
        n, k = len(stack), parameters.latent_dims
        self.latents = np.zeros((n, k), np.float32)
        self.covariance = np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)).copy()
        self.epoch = 0
        self.history: list[list[float]] = []
        self._domains: dict[int, VoxelDomain] = {}
        rate = parameters.flow_learning_rate
        self.optimizer: torch.optim.Optimizer
        if parameters.optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=rate)
        else:
            self.optimizer = torch.optim.SGD(self.flow.parameters(), lr=rate, momentum=0.9, nesterov=True)

    # -- schedule ------------------------------------------------------------------------------------------------

    def band(self, epoch: int) -> float:
        """Band limit of an epoch, as a fraction of the stack's Nyquist."""
        p = self.parameters
        rise = max(1.0, p.band_epochs * p.epochs)
        return p.band_start + (p.band_end - p.band_start) * min(1.0, epoch / rise)

    def level(self, band: float, *, whole: bool = False) -> tuple[_Level, float]:
        """The coarsest grid that carries `band`, and the band as a fraction of its Nyquist.

        Without `whole` voxels of hardly any density are left out: they move nothing that the images could show.
        """
        full = self.stack.box
        box = min(full, max(16, 8 * int(np.ceil(band * full / BAND_OF_BOX / 8))))
        if box not in self._domains:
            self._domains[box] = voxel_domain(self.mesh, fourier_resize(self.mask, box), MASK_LEVEL)
        domain = self._domains[box]
        cut = band * full / 2 / self.stack.extent_A
        values = domain.gather(fourier_resize(low_pass(self.map, cut), box).data)
        if not whole:
            keep = np.abs(values) > FAINT * np.abs(values).max()
            domain, values = domain.subset(keep), values[keep]
        model = ImageModel(domain, box, stack_box=full, stack_pixel_size_A=self.stack.pixel_size_A)
        return _Level(box, model, values), min(1.0, band * full / box)

    # -- start ---------------------------------------------------------------------------------------------------

    def start_latents(self, latents: NDArray[np.floating] | None) -> None:
        """Latents (and, from a linear start, the flow) to begin with."""
        p, rng = self.parameters, np.random.default_rng(self.seed)
        how = "columns" if latents is not None else p.latent_start
        if latents is not None:
            spread = latents.std(axis=0)
            self.latents = ((latents - latents.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
            self.covariance *= GIVEN_VARIANCE
        elif how == "random":
            self.latents = (0.5 * rng.normal(size=self.latents.shape)).astype(np.float32)
        elif how == "linear":
            level, band = self.level(p.band_start)
            began = time.monotonic()
            start = linear_start(
                self.stack, self.mesh, level.model, level.values, p.latent_dims, band, p.batch, self.seed, self.events
            )
            self.latents, self.covariance = start.latents, start.covariance
            self.flow.start_straight(torch.from_numpy(start.fields))
            leading = ", ".join(f"{value:.2g}" for value in start.spectrum[: p.latent_dims + 3])
            self.events.message(
                f"linear start in {time.monotonic() - began:.0f} s; signal-to-noise of its directions: {leading}"
            )

    # -- one epoch -----------------------------------------------------------------------------------------------

    def infer(self, index: NDArray[np.int64], levels: list[tuple[_Level, float]]) -> Batch:
        """Latent inference for a minibatch, from coarse to fine: a motion of several times the finest detail has
        false optima there, and the coarse step leads back from them. Returns the batch at the finest level."""
        method = gauss_newton if self.parameters.latent_method == "gauss_newton" else coordinate_descent
        z = torch.from_numpy(self.latents[index])
        for level, band in levels:
            batch = self.stack.batch(index, box=level.box, band=band)
            z, covariance, _ = method(level.model, level.values, self.flow, batch, self.vertices, z)
        self.latents[index], self.covariance[index] = z.numpy(), covariance.numpy()
        return batch

    def levels(self, band: float) -> list[tuple[_Level, float]]:
        """The levels of latent inference: the band of the first epoch, then the present one."""
        coarse = self.parameters.band_start
        return [self.level(b) for b in ((coarse, band) if band > 1.2 * coarse else (band,))]

    def flow_step(self, level: _Level, batch: Batch, generator: torch.Generator) -> tuple[float, float]:
        """One optimiser step of the flow; returns data term (summed) and rigidity (mean per particle)."""
        p = self.parameters
        covariance = torch.from_numpy(self.covariance[batch.index])
        spread = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(covariance.shape[-1]))
        noise = torch.randn((len(batch.index), p.latent_dims, 1), generator=generator)
        z = torch.from_numpy(self.latents[batch.index]) + p.noise_injection * (spread @ noise)[..., 0]
        u = self.flow(z)
        q = level.model.positions(batch.projections, batch.origins_px, self.vertices + u)
        fixed = q.detach()
        residual = batch.transfer * level.model.transform(level.values, fixed) - batch.data
        spectrum = batch.transfer * residual / batch.multiplicity
        _, gradient = level.model.gradient(spectrum, fixed, level.values)
        assert gradient is not None
        rigidity = self.rigidity.energy(u[:RIGIDITY_SAMPLE])
        # The inner product with the data term's gradient has that gradient: the operator stays outside autograd.
        surrogate = (q * gradient).sum() / len(z) + p.rigidity * rigidity
        self.optimizer.zero_grad()
        surrogate.backward()
        self.optimizer.step()
        return 0.5 * float(torch.view_as_real(residual).square().sum()), float(rigidity.detach())

    def learning_rate(self, epoch: int) -> float:
        """Falls linearly to a tenth: late steps average over the noise of many minibatches."""
        p = self.parameters
        return p.flow_learning_rate * (1 - 0.9 * epoch / max(1, p.epochs - 1))

    def run_epoch(self) -> None:
        """All particles once; then, when it is due, the map."""
        p = self.parameters
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.epoch)
        levels = self.levels(self.band(self.epoch))
        level, band = levels[-1]
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.stack))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        data_term = rigidity = coefficients = 0.0
        batches = np.array_split(order, max(1, round(len(order) / p.batch)))
        began = time.monotonic()
        for number, chosen in enumerate(batches):
            self.events.check_stop()
            index = np.sort(chosen)
            if self.epoch >= p.fixed_latent_epochs:
                batch = self.infer(index, levels)
            else:
                batch = self.stack.batch(index, box=level.box, band=band)
            loss, stiff = self.flow_step(level, batch, generator)
            data_term += loss
            rigidity += stiff / len(batches)
            coefficients += 0.5 * float((batch.multiplicity * (batch.transfer[0] != 0)).sum()) * len(chosen)
            if number % 20 == 19:
                self.events.progress(f"  epoch {self.epoch + 1}", number + 1, len(batches), began)
        if self.epoch >= p.fixed_latent_epochs:
            self.standardise_latents()
        self.epoch += 1
        due = self.epoch - p.fixed_latent_epochs
        if p.map_every and due >= 0 and due % p.map_every == 0 and self.epoch < p.epochs:
            self.solve_map()
        cut = 2 * self.stack.pixel_size_A / self.band(self.epoch - 1)
        spread, posterior = self.latents.std(), np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2).mean())
        values = [cut, data_term / coefficients, rigidity, spread, posterior, self.motion_rms()]
        self.history.append([float(value) for value in values])

    def standardise_latents(self) -> None:
        """Turn and scale the latents so that, posterior spread included, they follow their prior N(0, 1).

        The flow takes the inverse, so that no displacement changes. Without it the rigidity prior shrinks the flow
        while the latents grow, and their own prior then works against the motion.
        """
        z = self.latents.astype(np.float64)
        root = np.linalg.cholesky(z.T @ z / len(z) + self.covariance.mean(axis=0) + 1e-9 * np.eye(z.shape[1]))
        inverse = np.linalg.inv(root)
        self.latents = (z @ inverse.T).astype(np.float32)
        self.covariance = (inverse @ self.covariance @ inverse.T).astype(np.float32)
        self.flow.change_latents(torch.from_numpy(root.astype(np.float32)))

    def solve_map(self) -> None:
        """Solve for the canonical map at the present band limit, latents and flow fixed.

        Each half-set is solved for on its own, from zero; their mean is filtered by its signal-to-noise ratio as the
        halves' FSC tells it, 2 FSC / (1 + FSC). A map that holds the images' own noise would teach latents and flow to
        move towards that noise, and both final half-maps would then agree on it.
        """
        level, band = self.level(self.band(self.epoch), whole=True)

        def positions(batch: Batch) -> torch.Tensor:
            with torch.no_grad():
                u = self.flow(torch.from_numpy(self.latents[batch.index]))
                return level.model.positions(batch.projections, batch.origins_px, self.vertices + u)

        halves = []
        for half in (1, 2):
            index = np.flatnonzero(self.stack.halves == half)
            problem = LeastSquares(self.stack, index, level.model, positions, band=band, events=self.events)
            state = solve(problem, max_iterations=MAP_ITERATIONS, tolerance=1e-3)
            halves.append(level.model.domain.scatter(state.values))
        signal = fsc_weights(fsc(*halves)) ** 2
        spectrum = np.fft.rfftn(0.5 * (halves[0] + halves[1]))
        spectrum *= np.append(signal, np.zeros(level.box))[shell_index(level.box)]
        mean = np.fft.irfftn(spectrum, s=(level.box,) * 3, axes=(0, 1, 2)).astype(np.float32)
        self.map = fourier_resize(Volume(mean, self.stack.extent_A / level.box), self.stack.box)

    def finish(self) -> FlexModel:
        """Last visits of the latents at the final band limit, and the model."""
        if self.parameters.map_every:
            self.solve_map()
        levels = self.levels(self.parameters.band_end)
        for start in range(0, len(self.stack), self.parameters.batch):
            self.events.check_stop()
            index = np.arange(start, min(start + self.parameters.batch, len(self.stack)))
            self.infer(index, [*levels, levels[-1]])
        return FlexModel(
            mesh=self.mesh,
            flow=self.flow,
            latents=self.latents,
            covariance=self.covariance,
            map=self.map,
            support=self.mask,
            history=np.array(self.history).reshape(-1, len(HISTORY)),
            history_names=HISTORY,
        )

    def motion_rms(self) -> float:
        """Root mean square displacement over particles and vertices, in angstroms, weighed by rigidity."""
        some = np.random.default_rng(0).permutation(len(self.stack))[:200]
        with torch.no_grad():
            u = self.flow(torch.from_numpy(self.latents[some]))
        return float((u - u.mean(0)).square().sum(-1).mean().sqrt())

    # -- checkpoint ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Everything needed to go on after the present epoch."""
        if self.checkpoint is None:
            return
        state = {
            "flow": self.flow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latents": torch.from_numpy(self.latents),
            "covariance": torch.from_numpy(self.covariance),
            "map": torch.from_numpy(self.map.data),
            "epoch": self.epoch,
            "history": self.history,
        }
        with written_aside(self.checkpoint) as file:
            torch.save(state, file)

    def resume(self) -> bool:
        """Load the checkpoint, if there is one."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        self.flow.load_state_dict(state["flow"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.latents, self.covariance = state["latents"].numpy(), state["covariance"].numpy()
        self.map = Volume(state["map"].numpy(), self.map.pixel_size_A)
        self.epoch, self.history = state["epoch"], state["history"]
        return True


def train(trainer: Trainer, latents: NDArray[np.floating] | None = None) -> FlexModel:
    """Run a training to its end, from its checkpoint where there is one."""
    events, epochs = trainer.events, trainer.parameters.epochs
    if trainer.resume():
        events.message(f"training goes on after epoch {trainer.epoch}")
    else:
        trainer.start_latents(latents)
        trainer.save()
    began, first = time.monotonic(), trainer.epoch
    while trainer.epoch < epochs:
        trainer.run_epoch()
        trainer.save()
        row = dict(zip(HISTORY, trainer.history[-1], strict=True))
        note = f"{row['band limit (A)']:.1f} A, data term {row['data term per coefficient']:.5f}, "
        note += f"rigidity {row['rigidity']:.3g}, latent spread {row['latent spread']:.2f}, "
        note += f"motion {row['motion (A)']:.2f} A rms"
        events.progress("epoch", trainer.epoch - first, epochs - first, began, note)
    return trainer.finish()
