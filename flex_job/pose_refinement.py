"""Poses and contrasts of single particles, refined under the motion: after the training, with its flow.

A particle's latents and its pose error (a shift and a turn, six numbers) are inferred together by Gauss-Newton: the
turn that a bent molecule suggests, and the bend that a wrong angle suggests, are weighed against one another. The
errors have a normal prior whose covariance the images tell, by expectation-maximisation over the particles, so exact
poses stay where they are. Contrasts are regressions of the images on the particle's own moved map, with an empirical
prior around one, as the preparation's are on the consensus. The map is then solved for again with what was found.

The map that a particle is compared with is the training's, of all its particles, as for the latents: half-maps share
it, and with it what the latents and poses took from noise. With independent halves there is one for each half-set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from flex_job.calibration import shrunk_contrast
from flex_job.flow import Flow
from flex_job.latents import inferred
from flex_job.levels import Level
from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.model import FlexModel
from flex_job.particles import Batch, ParticleStack
from flex_job.pose_corrections import PoseCorrections
from flex_job.pose_errors import posed_batches, with_pose_errors
from flex_job.train import Trainer
from flex_job.turned_flow import TurnedFlow

__all__ = ["refine_poses"]

ROUNDS = 2  # of inference; the map is solved for between them

NAMES = ("latents", "covariance", "motion", "contrast")
Floats = NDArray[np.float32]


@dataclass
class _Found:
    """Of n particles: latents (n, K), their covariance (n, K, K), the pose's `motion` (n, 6) as a shift in angstroms
    and a rotation vector in radians, relative contrast (n,)."""

    latents: Floats
    covariance: Floats
    motion: Floats
    contrast: Floats


def refine_poses(
    trainer: Trainer, model: FlexModel, contrast: Floats, *, poses: bool = True, scale: bool = False
) -> FlexModel:
    """The model with corrections of `poses`, contrasts (`scale`) or both, and the latents, covariance and map that go
    with them. `trainer` is the model's own, whose particles were prepared with the relative `contrast` (n,); it keeps
    the corrected particles. Together."""
    given, p = trainer.stack, trainer.parameters
    flow = model.flow.to(trainer.device)
    found = _Found(model.latents, model.covariance, np.zeros((len(given), 6), np.float32), contrast)
    density, rounds = model.map, 0
    checkpoint = trainer.checkpoint and trainer.checkpoint.part("poses")
    state = checkpoint.load(trainer.group) if checkpoint else None
    if state is not None:
        found, rounds = _Found(*(state[name].numpy() for name in NAMES)), state["rounds"]
    for number in range(rounds, ROUNDS):
        if number:
            trainer.stack = _corrections(given, trainer.mesh, found, scale=scale).applied(given, contrast)
            density = trainer.solved(flow, found.latents)
        # poses as they were given, for the prior is that of the whole error; contrasts as last found
        trainer.stack = replace(given, scale=(given.scale * (found.contrast / contrast)).astype(np.float32))
        levels = [trainer.levels.level(density, band) for band in (p.band_start, p.band_end)]
        moving: Flow = flow
        with trainer.events.part(number / ROUNDS, (number + 1) / ROUNDS, f"poses, round {number + 1} of {ROUNDS}"):
            if poses:
                with trainer.events.part(0.0, 0.2):
                    sample = np.flatnonzero(~trainer.kept_aside)
                    moving = with_pose_errors(trainer, levels[0], flow, found.latents, sample, beside_latents=True)
                trainer.events.message(_told(moving))
            with trainer.events.part(0.2, 1.0):
                found = _visit(trainer, levels, moving, found, scale=scale)
        if checkpoint and trainer.group.is_first and number + 1 < ROUNDS:
            checkpoint.save({name: torch.from_numpy(getattr(found, name)) for name in NAMES} | {"rounds": number + 1})
    corrections = _corrections(given, trainer.mesh, found, scale=scale)
    trainer.stack = corrections.applied(given, contrast)
    return replace(
        model,
        flow=flow.cpu(),
        latents=found.latents,
        covariance=found.covariance,
        map=density,
        corrections=corrections,
    )


def _told(turned: TurnedFlow) -> str:
    amplitudes = turned.root.square().sum(1).cpu()
    shift_A, turn_deg = float(amplitudes[:3].mean().sqrt()), np.rad2deg(float(amplitudes[3:].mean().sqrt()))
    return f"poses as given are off by {turn_deg:.2f} degrees about each axis and {shift_A:.2f} A along each (rms)"


def _visit(trainer: Trainer, levels: Sequence[Level], moving: Flow, found: _Found, *, scale: bool) -> _Found:
    """All particles once: latents and pose errors together (latents alone where `moving` is a flow of these), then
    contrasts."""
    n, dims = found.latents.shape
    turned = moving if isinstance(moving, TurnedFlow) else None
    new = replace(found, **{name: np.zeros_like(getattr(found, name)) for name in ("latents", "covariance", "motion")})
    raw, variance = np.zeros(n), np.zeros(n)
    for batch in posed_batches(trainer, np.arange(n), levels[-1].model.band):
        rows = batch.index
        z = torch.from_numpy(found.latents[rows]).to(trainer.device)
        if turned is not None:
            z = torch.cat([z, turned.amplitudes(torch.from_numpy(found.motion[rows]).to(trainer.device))], dim=1)
        z, covariance = inferred(levels, moving, batch, trainer.vertices, z)
        new.latents[rows], new.covariance[rows] = z[:, :dims].cpu().numpy(), covariance[:, :dims, :dims].cpu().numpy()
        if turned is not None:
            new.motion[rows] = turned.motion(z).cpu().numpy()
        if scale:
            raw[rows], variance[rows] = _regression(levels[-1], moving, batch, trainer.vertices, z)
    mine = trainer.group.own(np.arange(n))
    for values in (new.latents, new.covariance, new.motion, raw, variance):
        trainer.group.complete_(torch.from_numpy(values), mine)
    if scale:
        relative = found.contrast.astype(np.float64)  # of the particles as they are now
        contrast = shrunk_contrast(raw * relative, variance * relative**2, trainer.stack.optics_index)
        new = replace(new, contrast=contrast)
    return new


def _regression(
    level: Level, moving: Flow, batch: Batch, vertices_A: torch.Tensor, z: torch.Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The factor (b,) on its model that explains each image best, and its variance (b,)."""
    with torch.no_grad():
        q = level.model.positions(batch, vertices_A + moving(z))
    seen = torch.view_as_real(batch.transfer * level.model.transform(level.values, q)).flatten(1).double()
    overlap = (seen * torch.view_as_real(batch.data).flatten(1)).sum(1)
    energy = seen.square().sum(1) + 1e-12
    return (overlap / energy).cpu().numpy(), (1 / energy).cpu().numpy()


def _corrections(given: ParticleStack, mesh: TetMesh, found: _Found, *, scale: bool) -> PoseCorrections:
    """A point x of a particle moves to c + W (x - c) + t: with projections P W it is seen in the same place from an
    origin that is less by P (c - W c + t)."""
    if not found.motion.any():
        return replace(PoseCorrections.none(len(given)), contrast=found.contrast if scale else None)
    shift, turn = found.motion[:, :3], found.motion[:, 3:]
    corrections = PoseCorrections(turn, np.zeros((len(given), 2), np.float32), found.contrast if scale else None)
    centre = vertex_weights(mesh) @ mesh.vertices_A
    move_A = (
        np.einsum("npa,na->np", given.projections, centre + shift) - corrections.rotations(given.projections) @ centre
    )
    return replace(corrections, shift_A=(-move_A * given.pixel_sizes_A[:, None]).astype(np.float32))
