"""Training (paper, "Optimization of flow and structure"): latents, flow and map from a particle stack.

One epoch visits all particles in minibatches: latent inference for the minibatch, then one step of the flow at
latents drawn from their posterior. Every few epochs the map is solved for, with latents and flow fixed. The band
limit rises from epoch to epoch, and box and voxels are as coarse as the band allows.

Of several ranks each infers the latents of its own particles and adds to the flow's gradient; the flow is the same on
all, and after each epoch the latents are too. What is computed does not depend on their number but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.band import Band
from flex_job.canonical_map import canonical_map
from flex_job.checkpoint import Checkpoint, Saver
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.flow import Flow, FlowGenerator
from flex_job.flow_gradient import FlowObjective
from flex_job.gauge import standardised
from flex_job.held_out import held_out
from flex_job.latents import coordinate_descent, gauss_newton
from flex_job.levels import Level, Levels, band_limit
from flex_job.linear_start import linear_latents, linear_start
from flex_job.mesh import TetMesh
from flex_job.model import FlexModel
from flex_job.operator.convect import convect
from flex_job.particles import Batch, ParticleStack
from flex_job.rigidity import Rigidity
from flex_job.shards import Index, epoch_batches
from flex_job.solver import moved_vertices
from flex_job.training_schedule import Stretch, TrainingSchedule
from flex_job.volume import Volume
from job_specs.parameter import settled
from job_specs.parameters import TrainParameters

__all__ = ["HISTORY", "Trainer", "train"]

HISTORY = ("band limit (A)", "data term per coefficient", "rigidity", "latent spread", "posterior std", "motion (A)")
STOP_EVERY = 4  # minibatches: ranks ask each other, which takes half a millisecond
GIVEN_VARIANCE = 0.1  # of latents that another method found, which come without one


class Trainer:
    """The state of a training and its steps. `map` is the canonical map at the stack's box.

    A training is a row of visits to all particles, minibatch by minibatch: that of a linear start, the epochs, and the
    last of the latents. `minibatch` of the present one are done; between two of them the state can be saved, and what
    goes on from there does the same as what was not interrupted. `map_due` says that the map is to be solved for
    before the next visit.
    """

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
        checkpoint: Checkpoint | None = None,
        group: Group | None = None,
        tf32: bool = False,
        micro_batch: int = 0,
        start_batch: int = 0,
    ) -> None:
        """`consensus_map` in the stack's units of density and box; `mask` its mask (same box). Works on the device of
        `group`, by default one process on the CPU. See `make_operator` for `tf32`. Minibatches larger than
        `micro_batch` are gone through in parts, those of the linear start with `start_batch`; 0 is without limit."""
        parameters = settled(parameters)
        self.stack, self.mesh, self.parameters, self.events = stack, mesh, parameters, events
        self.kept_aside = held_out(len(stack), parameters.held_out, seed)
        self.seed, self.checkpoint = seed, checkpoint
        self.schedule = TrainingSchedule(parameters, len(stack))
        self.mask = mask
        self.map = consensus_map
        self.group = group or Group()
        self.device = self.group.device
        self.micro_batch = min(micro_batch or parameters.batch, parameters.batch)
        self.start_batch = min(start_batch or parameters.batch, parameters.batch)
        self.levels = Levels(stack, mesh, mask, self.device, tf32=tf32)
        self.vertices = torch.from_numpy(mesh.vertices_A.astype(np.float32)).to(self.device)
        torch.manual_seed(seed)
        self.flow = FlowGenerator(
            parameters.latent_dims, parameters.flow_layers, parameters.flow_units, torch.from_numpy(mesh.motion)
        ).to(self.device)
        self.objective = FlowObjective(self.flow, self.vertices, Rigidity(mesh, self.device), parameters.rigidity)
        n, k = len(stack), parameters.latent_dims
        self.latents = np.zeros((n, k), np.float32)
        self.covariance = np.broadcast_to(np.eye(k, dtype=np.float32), (n, k, k)).copy()
        self.epoch = self.minibatch = 0
        self.map_due = False
        self.fields: torch.Tensor | None = None  # of a linear start whose visit is not over
        self.noise = torch.Generator()
        self.data_term = torch.zeros((), dtype=torch.float64, device=self.device)  # this rank's parts, of the epoch
        self.stiffness = torch.zeros((), device=self.device)
        self.history: list[list[float]] = []
        rate = parameters.flow_learning_rate
        self.optimizer: torch.optim.Optimizer
        if parameters.optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=rate, fused=True)
        else:
            self.optimizer = torch.optim.SGD(self.flow.parameters(), lr=rate, momentum=0.9, nesterov=True)

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
            level = self.levels.level(self.map, p.band_start)
            began = time.monotonic()
            self.events.progress(0.0, "linear start")
            start = linear_start(
                self.stack,
                self.mesh,
                level.model,
                level.values,
                p.latent_dims,
                self.start_batch,
                self.seed,
                self.events,
                self.group,
                np.flatnonzero(~self.kept_aside),
            )
            self.fields = start.fields
            self.flow.start_straight(start.fields)
            leading = ", ".join(f"{value:.2g}" for value in start.spectrum[: p.latent_dims + 3])
            self.events.message(
                f"linear start in {time.monotonic() - began:.0f} s; signal-to-noise of its directions: {leading}"
            )
            self.find_linear_latents()

    def find_linear_latents(self) -> None:
        """The visit that ends a linear start: the particles' latents along its fields."""
        assert self.fields is not None
        level = self.levels.level(self.map, self.parameters.band_start)
        stretch = self.schedule.start
        for _, parts in self.visits("linear start", stretch, self._consecutive(), level.model.band, self.start_batch):
            for batch in parts:
                z, covariance = linear_latents(level.model, level.values, batch, self.vertices, self.fields)
                self.latents[batch.index], self.covariance[batch.index] = z.numpy(), covariance.numpy()
        self.share_latents()
        self.minibatch, self.fields = 0, None

    # -- visits --------------------------------------------------------------------------------------------------

    def visits(
        self, what: str, stretch: Stretch, batches: Sequence[Index], band: Band, limit: int
    ) -> Iterator[tuple[Index, Iterator[Batch]]]:
        """Those of the minibatches that are not done yet, each with this rank's particles of it, at most `limit` at a
        time. Every few minibatches the state is saved if it is time, or if a stop is asked for. `stretch` is the
        visit's share of the training."""
        saver = Saver(self.save, self.group, self.events)
        begin, end = stretch
        left = batches[self.minibatch :]
        pieces = [_pieces(self.group.own(whole), limit) for whole in left]
        with closing(self.stack.batches(chain.from_iterable(pieces), band)) as stream:
            for number, whole in enumerate(left):
                if number % STOP_EVERY == 0:
                    saver.check()
                self.events.progress(begin + (end - begin) * self.minibatch / len(batches), what)
                yield whole, islice(stream, len(pieces[number]))
                self.minibatch += 1

    def _consecutive(self) -> list[Index]:
        """Minibatches in the particles' order, which disks like best."""
        n = len(self.stack)
        return np.array_split(np.arange(n), max(1, round(n / self.parameters.batch)))

    # -- one epoch -----------------------------------------------------------------------------------------------

    def steps(self, band: float) -> list[Level]:
        """The levels of latent inference: the band of the first epoch, then the present one."""
        coarse = self.parameters.band_start
        return [self.levels.level(self.map, b) for b in ((coarse, band) if band > 1.2 * coarse else (band,))]

    def infer(self, batch: Batch, levels: list[Level]) -> None:
        """Latent inference for a minibatch in the last level's band, from coarse to fine: a motion of several times the
        finest detail has false optima there, and the coarse step leads back from them."""
        method = gauss_newton if self.parameters.latent_method == "gauss_newton" else coordinate_descent
        z = torch.from_numpy(self.latents[batch.index]).to(self.device)
        for level in levels:
            z, covariance, _ = method(
                level.model, level.values, self.flow, batch.below(level.model.band), self.vertices, z
            )
        self.latents[batch.index], self.covariance[batch.index] = z.cpu().numpy(), covariance.cpu().numpy()

    def drawn_latents(self, batch: Batch, noise: torch.Tensor) -> torch.Tensor:
        """Latents (b, K) drawn from the particles' posterior with `noise` (b, K), standard normal (paper: noise
        injection, which makes neighbours in latent space move alike)."""
        covariance = torch.from_numpy(self.covariance[batch.index])
        spread = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(covariance.shape[-1]))
        drawn = (spread @ noise[..., None])[..., 0]
        return (torch.from_numpy(self.latents[batch.index]) + self.parameters.noise_injection * drawn).to(self.device)

    def flow_step(self) -> None:
        """One optimiser step with the gradients of all ranks."""
        parameters = list(self.flow.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # no particle of the minibatch is this rank's
                parameter.grad = torch.zeros_like(parameter)
        self.group.sum_(*(parameter.grad for parameter in parameters if parameter.grad is not None))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learning_rate(self, epoch: int) -> float:
        """Falls linearly to a tenth: late steps average over the noise of many minibatches."""
        p = self.parameters
        return p.flow_learning_rate * (1 - 0.9 * epoch / max(1, p.epochs - 1))

    def run_epoch(self) -> None:
        """All particles once; then, when it is due, the map."""
        p = self.parameters
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.epoch)
        band = band_limit(p, self.epoch)
        levels = self.steps(band)
        fine = levels[-1]
        batches = epoch_batches(len(self.stack), p.batch, self.seed, self.epoch)
        if self.minibatch == 0:
            self.noise.manual_seed(self.seed * 100_003 + self.epoch)
            self.data_term.zero_()
            self.stiffness.zero_()
        what, stretch = f"in epoch {self.epoch + 1} of {p.epochs}", self.schedule.epoch(self.epoch)
        for whole, parts in self.visits(what, stretch, batches, fine.model.band, self.micro_batch):
            noise = torch.randn((len(whole), p.latent_dims), generator=self.noise)  # the same on all ranks
            for batch in parts:
                if self.epoch >= p.fixed_latent_epochs:
                    self.infer(batch, levels)
                rows = torch.from_numpy(np.searchsorted(whole, batch.index))
                keep = ~self.kept_aside[batch.index]
                learned = batch.take(keep)
                z = self.drawn_latents(learned, noise[rows[torch.from_numpy(keep)]])
                loss, stiff = self.objective.add_gradient(fine, learned, whole[~self.kept_aside[whole]], z)
                self.data_term += loss
                self.stiffness += stiff / len(batches)
            self.flow_step()
        if self.epoch >= p.fixed_latent_epochs:
            self.share_latents()
            self.standardise_latents()
        self.history.append(self.history_row(band, int((~self.kept_aside).sum()) * len(fine.model.band)))
        self.epoch, self.minibatch = self.epoch + 1, 0
        self.map_due = self.schedule.map_follows(self.epoch - 1)
        self.save()
        self.tell_epoch()
        if self.map_due and self.epoch < p.epochs:
            self.solve_map()

    def tell_epoch(self) -> None:
        """How far the training is after the epoch that has ended."""
        figures = dict(zip(("band_A", "loss", "rigidity", "latent_spread"), self.history[-1], strict=False))
        figures["motion_A"] = self.history[-1][HISTORY.index("motion (A)")]
        _, done = self.schedule.epoch(self.epoch - 1)
        self.events.progress(done, f"epoch {self.epoch}/{self.parameters.epochs}", landmark=True, **figures)

    def history_row(self, band: float, coefficients: int) -> list[float]:
        """What HISTORY names, of the epoch that ends."""
        cut = 2 * self.stack.pixel_size_A / band
        spread, posterior = self.latents.std(), np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2).mean())
        misfit, stiffness = self.group.total(float(self.data_term), float(self.stiffness))
        values = [cut, misfit / coefficients, stiffness, spread, posterior, self.motion_rms()]
        return [float(value) for value in values]

    def share_latents(self) -> None:
        """Latents of all particles to all ranks, from those that own them."""
        for rows in (self.latents, self.covariance):
            self.group.complete_(torch.from_numpy(rows), self.group.own(np.arange(len(self.stack))))

    def standardise_latents(self) -> None:
        """Latents to their prior, the flow with the inverse: no displacement changes."""
        self.latents, self.covariance, inverse = standardised(self.latents, self.covariance, ~self.kept_aside)
        self.flow.change_latents(torch.from_numpy(inverse).to(self.device))

    def solve_map(self) -> None:
        """Solve for the canonical map at the present band limit, latents and flow fixed, in the frame of the mean
        displacement: left alone the flow drifts from it, and both halves' maps would share a distorted frame."""
        self.flow.rest_at_mean(self._trained_latents())
        checkpoint = self.checkpoint and self.checkpoint.part("map", f"after epoch {self.epoch}")
        band = band_limit(self.parameters, self.epoch)
        with self.events.part(*self.schedule.map(self.epoch - 1), f"map after epoch {self.epoch}"):
            self.map = self.solved(self.flow, self.latents, band=band, checkpoint=checkpoint)
        self.map_due = False
        self.save()

    def solved(
        self,
        flow: Flow | None = None,
        latents: NDArray[np.float32] | None = None,
        *,
        band: float | None = None,
        left_out: NDArray[np.bool_] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Volume:
        """The canonical map of the particles moved by `flow` at `latents` (n, K), or at rest, in `band` (the training's
        last by default). Particles at which `left_out` (n,) is true have no part in it, by default those that are kept
        aside. Together."""
        images = self.levels.model(band or self.parameters.band_end)
        positions = moved_vertices(images, self.vertices, flow, latents)
        aside = self.kept_aside if left_out is None else left_out
        return canonical_map(
            self.stack, images, positions, self.events, self.group, self.micro_batch, checkpoint, aside
        )

    def finish(self) -> FlexModel:
        """Last visit of the latents at the final band limit, and the model."""
        if self.map_due:
            self.solve_map()
        levels = self.steps(self.parameters.band_end)
        stretch = self.schedule.last
        for _, parts in self.visits(
            "last visit", stretch, self._consecutive(), levels[-1].model.band, self.micro_batch
        ):
            for batch in parts:
                self.infer(batch, [*levels, levels[-1]])
        self.share_latents()
        self.rest_at_mean()
        return FlexModel(
            mesh=self.mesh,
            flow=self.flow.cpu(),
            latents=self.latents,
            covariance=self.covariance,
            map=self.map,
            support=self.mask,
            history=np.array(self.history).reshape(-1, len(HISTORY)),
            history_names=HISTORY,
        )

    def rest_at_mean(self) -> None:
        """Make the mean displacement of the particles zero, and carry the map along by what it was."""
        rest = torch.zeros(1, self.parameters.latent_dims, device=self.device)
        with torch.no_grad():
            before = self.flow(rest)
            self.flow.rest_at_mean(self._trained_latents())
            field = (before - self.flow(rest))[0].cpu().numpy()  # one for all latents
        domain = self.levels.domain(self.stack.box)
        self.map = convect(domain, domain.gather(self.map.data), self.mesh.vertices_A + field)

    def _trained_latents(self) -> torch.Tensor:
        return torch.from_numpy(self.latents[~self.kept_aside])

    def motion_rms(self) -> float:
        """Root mean square displacement over particles and vertices, in angstroms, weighed by rigidity."""
        some = np.random.default_rng(0).permutation(len(self.stack))[:200]
        with torch.no_grad():
            u = self.flow(torch.from_numpy(self.latents[some]).to(self.device))
        return float((u - u.mean(0)).square().sum(-1).mean().sqrt())

    # -- checkpoint ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Keep everything needed to go on from here; the first rank writes it for all. Together."""
        if self.checkpoint is None:
            return
        latents, covariance = torch.from_numpy(self.latents.copy()), torch.from_numpy(self.covariance.copy())
        for rows in (latents, covariance):
            self.group.complete_(rows, self.group.own(np.arange(len(self.stack))))
        sums = self.group.total(float(self.data_term), float(self.stiffness))
        state = {
            "flow": self.flow.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latents": latents,
            "covariance": covariance,
            "map": torch.from_numpy(self.map.data),
            "map_due": self.map_due,
            "fields": self.fields,
            "epoch": self.epoch,
            "minibatch": self.minibatch,
            "noise": self.noise.get_state(),
            "sums": sums,
            "history": self.history,
        }
        if self.group.is_first:
            self.checkpoint.save(state)

    def resume(self) -> bool:
        """Take over the state that was saved, if there is one. Together."""
        state = self.checkpoint.load(self.group) if self.checkpoint else None
        if state is None:
            return False
        self.flow.load_state_dict(state["flow"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.latents, self.covariance = state["latents"].numpy(), state["covariance"].numpy()
        self.map, self.map_due = Volume(state["map"].numpy(), self.map.pixel_size_A), state["map_due"]
        self.fields = None if state["fields"] is None else state["fields"].to(self.device)
        self.epoch, self.minibatch, self.history = state["epoch"], state["minibatch"], state["history"]
        self.noise.set_state(state["noise"])
        for total, before in zip((self.data_term, self.stiffness), state["sums"], strict=True):
            total.fill_(before if self.group.is_first else 0.0)
        return True


def _pieces(index: Index, limit: int) -> list[Index]:
    """Particles in as many parts as the device's memory asks for."""
    return np.array_split(index, -(-len(index) // limit)) if len(index) else []


def train(trainer: Trainer, latents: NDArray[np.floating] | None = None) -> FlexModel:
    """Run a training to its end, from its checkpoint where there is one."""
    events, epochs = trainer.events, trainer.parameters.epochs
    if trainer.resume():
        within = f", {trainer.minibatch} minibatches into the next visit" if trainer.minibatch else ""
        events.message(f"training goes on after epoch {trainer.epoch}{within}")
        if trainer.fields is not None:
            trainer.find_linear_latents()
    else:
        trainer.start_latents(latents)
        trainer.save()
    if trainer.map_due and trainer.epoch < epochs:
        trainer.solve_map()
    while trainer.epoch < epochs:
        trainer.run_epoch()
    return trainer.finish()
