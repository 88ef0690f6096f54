"""What the report shows: plain arrays and strings, put together by whoever ran the job.

Everything except the title may be missing; the report then leaves the figure out and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flex_job.fsc import FscCurves
from flex_job.resolution import Resolution
from flex_job.volume import Volume

if TYPE_CHECKING:
    from flex_job.choose import Choice
    from flex_job.mesh import TetMesh
    from flex_job.report.moving import MovingSurface
    from flex_job.validation import Verdict

__all__ = ["MeanImages", "ReportData", "Stage", "motion_volume"]


@dataclass(frozen=True)
class Stage:
    """One stage of the job: its wall-clock seconds and the process's peak memory, MiB (0: not measured)."""

    name: str
    seconds: float
    peak_MiB: float = 0.0


@dataclass(frozen=True)
class MeanImages:
    """Means `images` (m, b, b) [y, x] of `count` particles each, at `latents` (m,) of latent 1, seen from one side."""

    images: NDArray[np.float32]
    latents: NDArray[np.floating]
    count: int
    pixel_size_A: float


@dataclass(frozen=True)
class ReportData:
    """Everything a report may show. Volumes are cubic (z, y, x), their origin is voxel box // 2, lengths are angstrom.

    title, job_folder    head of the report
    particles            numbers in half-set 1 and half-set 2
    stages               in the order they ran
    consensus_map, mask  what came in; mask in [0, 1]. Boxes and pixel sizes may differ between all volumes here
    mesh                 a `TetMesh`: vertices_A (V, 3) xyz, cells (T, 4), rigidity (T,), motion (V,)
    latents, latent_std  (n, K): posterior mean and standard deviation per particle, the prior's spread is 1
    gains                (n,) likelihood gain of each particle by the motion, nats
    cluster_centres      (k, K) latents of the clusters' most central particles
    images               what the particles' images show along latent 1
    moving               the surface that the page bends
    motion_A             amplitude of the motion in A per voxel; voxels outside the mask are ignored (`motion_volume`)
    motion_definition    how that amplitude is defined, one phrase
    motion_mean_A        its mean as the run states it (weighted by density); without it, that over the mask's voxels
    rigid, flex          FSC curves of the half-maps without and with motion
    rigid_map, flex_map  combined, sharpened maps
    resolution           FSC in the user's masks and with an atomic model, quantiles of the local resolution
    rigid_locres, flex_locres  local resolution in A per voxel
    rigid_bfactor_A2, flex_bfactor_A2   applied to those two maps
    frames               maps along latent 1, low to high; `frame_latents` their values of latent 1
    training_limit_A     finest resolution that the motion model has seen, A
    independent_halves   whether each half-set has a motion model of its own
    choice               settings that the data chose, with all that was tried
    learning             per epoch: name -> (epochs,) or (epochs, K); the names of `flex_job.train.HISTORY` are put in
                         words, others drawn under their own; at most eight are
    parameters, versions as they should be listed; a nested mapping becomes a group
    verdict              whether the images support the motion
    findings             of the run itself, a sentence each, shown at the top. Resolutions, mean FSCs and the motion's
                         size are there anyway
    notes                what a user must know: 'contrast inverted', warnings
    """

    title: str
    job_folder: str = ""
    particles: tuple[int, int] | None = None
    stages: Sequence[Stage] = ()
    consensus_map: Volume | None = None
    mask: Volume | None = None
    mesh: TetMesh | None = None
    latents: NDArray[np.floating] | None = None
    latent_std: NDArray[np.floating] | None = None
    gains: NDArray[np.floating] | None = None
    cluster_centres: NDArray[np.floating] | None = None
    images: MeanImages | None = None
    moving: MovingSurface | None = None
    motion_A: Volume | None = None
    motion_definition: str = "root-mean-square displacement over the particles"
    motion_mean_A: float | None = None
    rigid: FscCurves | None = None
    flex: FscCurves | None = None
    rigid_map: Volume | None = None
    flex_map: Volume | None = None
    resolution: Resolution = field(default_factory=Resolution)
    rigid_locres: Volume | None = None
    flex_locres: Volume | None = None
    rigid_bfactor_A2: float | None = None
    flex_bfactor_A2: float | None = None
    frames: Sequence[Volume] = ()
    frame_latents: NDArray[np.floating] | None = None
    training_limit_A: float | None = None
    independent_halves: bool = False
    choice: Choice | None = None
    learning: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    parameters: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    verdict: Verdict | None = None
    findings: Sequence[str] = ()
    notes: Sequence[str] = ()

    def problems(self) -> list[str]:
        """What does not fit together, one sentence each: given, expected."""
        found = []
        for name in ("consensus_map", "mask", "motion_A", "rigid_map", "flex_map", "rigid_locres", "flex_locres"):
            found += _volume_problems(name, getattr(self, name))
        for number, frame in enumerate(self.frames):
            found += _volume_problems(f"frames[{number}]", frame)
        for name in ("latents", "latent_std"):
            value = getattr(self, name)
            if value is not None and np.ndim(value) != 2:
                found.append(f"{name} of shape {np.shape(value)}; expected (particles, K)")
        if self.latents is not None and self.latent_std is not None:
            shapes = np.shape(self.latents), np.shape(self.latent_std)
            if shapes[0] != shapes[1]:
                found.append(f"latents {shapes[0]} and latent_std {shapes[1]}; expected one shape")
        if self.frame_latents is not None and len(self.frame_latents) != len(self.frames):
            found.append(f"{len(self.frame_latents)} frame_latents for {len(self.frames)} frames; expected as many")
        return found


def motion_volume(
    amplitude_A: NDArray[np.floating], voxels: NDArray[np.integer], box: int, pixel_size_A: float
) -> Volume:
    """Amplitudes (P,) at the voxels with flat indices (P,) into (z, y, x) as a volume; NaN where nothing is known."""
    data = np.full(box**3, np.nan, dtype=np.float32)
    data[voxels] = amplitude_A
    return Volume(data.reshape(box, box, box), pixel_size_A)


def _volume_problems(name: str, volume: Volume | None) -> list[str]:
    if volume is None:
        return []
    shape = np.shape(volume.data)
    if len(shape) != 3 or len(set(shape)) != 1:
        return [f"{name} of shape {shape}; expected a cubic volume (z, y, x)"]
    return [] if volume.pixel_size_A > 0 else [f"{name} with pixel size {volume.pixel_size_A}; expected a positive one"]
