"""Which particles are simulated: orientations, shifts, defocus, half-sets, conformations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.simulation.motion import Conformations
from flex_job.volume import Volume

__all__ = ["Recording", "SimulatedParticles", "draw_particles"]


@dataclass(frozen=True)
class Recording:
    """How particles are recorded. `snr` is the signal's variance over all pixels divided by the noise's (0: noise
    only); `noise` is white or coloured, always of standard deviation 1; `pose_error_deg` is the standard deviation,
    about each axis, between the poses handed over and the true ones.
    """

    snr: float = 0.1
    noise: str = "white"
    shift_sigma_px: float = 1.5
    defocus_A: tuple[float, float] = (8_000.0, 22_000.0)
    astigmatism_A: float = 300.0
    phase_shift_deg: tuple[float, float] = (0.0, 0.0)
    pose_error_deg: float = 0.0
    inverted: bool = False

    def problems(self) -> list[str]:
        """All that is wrong with these values, as sentences; empty when nothing is."""
        found = []
        if self.snr < 0:
            found.append(f"snr = {self.snr}; expected 0 (noise only) or more")
        if self.noise not in ("white", "coloured"):
            found.append(f"noise = {self.noise!r}; expected 'white' or 'coloured'")
        if min(self.shift_sigma_px, self.astigmatism_A, self.pose_error_deg) < 0:
            found.append("shift_sigma_px, astigmatism_A and pose_error_deg: expected 0 or more")
        if self.defocus_A[0] > self.defocus_A[1]:
            found.append(f"defocus_A = {self.defocus_A}; expected (lowest, highest)")
        return found


@dataclass(frozen=True)
class SimulatedParticles:
    """`refined` is what a refinement would hand over; `true` differs from it by the pose error alone.
    `latents` (n, k) are the true ones, from -1 to 1.
    """

    refined: Consensus
    true: Consensus
    latents: NDArray[np.float64]


def draw_particles(
    conformations: Conformations,
    count: int,
    optics: tuple[OpticsGroup, ...],
    recording: Recording,
    consensus_map: Volume,
    *,
    seed: int = 0,
    fixed_latent: NDArray[np.float64] | None = None,
    images_per_stack: int = 2000,
    stack_folder: Path = Path("Particles"),
) -> SimulatedParticles:
    """Draw `count` particles: uniform orientations, normal shifts, uniform defocus and latents, random half-sets.

    Particles fall at random into the optics groups; every stack holds images of one group. The same seed gives the same
    poses whatever the motion. Raises ValueError with all problems of `recording`.
    """
    problems = recording.problems()
    if count < 1:
        problems.append(f"{count} particles; expected at least 1")
    if problems:
        raise ValueError("cannot simulate: " + "; ".join(problems))
    rng = np.random.default_rng([seed, 1])
    true_rotations = Rotation.random(count, rng)
    error = Rotation.from_rotvec(np.deg2rad(recording.pose_error_deg) * rng.standard_normal((count, 3)))
    optics_index = rng.integers(len(optics), size=count).astype(np.int32)
    pixel = np.array([group.pixel_size_A for group in optics])[optics_index]
    defocus = rng.uniform(*recording.defocus_A, size=count)
    astigmatism = recording.astigmatism_A * np.abs(rng.standard_normal(count))
    stack_index, image_index, stacks = _lay_out_stacks(optics_index, images_per_stack)
    refined = Consensus(
        rotations=(error * true_rotations).as_matrix(),
        origins_A=recording.shift_sigma_px * pixel[:, None] * rng.standard_normal((count, 2)),
        halves=(1 + rng.permutation(count) % 2).astype(np.int8),
        optics_index=optics_index,
        optics=optics,
        defocus_u_A=defocus + astigmatism / 2,
        defocus_v_A=defocus - astigmatism / 2,
        defocus_angle_rad=rng.uniform(0.0, np.pi, size=count),
        phase_shift_rad=np.deg2rad(rng.uniform(*recording.phase_shift_deg, size=count)),
        ctf_bfactor_A2=np.zeros(count),
        ctf_scale=np.ones(count),
        stack_paths=tuple(stack_folder / f"particles_{number + 1:03d}.mrcs" for number in range(stacks)),
        stack_index=stack_index,
        image_index=image_index,
        map=consensus_map,
    )
    if fixed_latent is None:
        latents = conformations.draw(count, np.random.default_rng([seed, 2]))
    else:
        latents = np.tile(np.asarray(fixed_latent, dtype=np.float64), (count, 1))
    return SimulatedParticles(
        refined=refined,
        true=replace(refined, rotations=true_rotations.as_matrix()),
        latents=latents,
    )


def _lay_out_stacks(
    optics_index: NDArray[np.int32], images_per_stack: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Stack and place in it for each particle, and the number of stacks: group by group, in the particles' order."""
    stack_index = np.zeros(len(optics_index), dtype=np.int32)
    image_index = np.zeros(len(optics_index), dtype=np.int64)
    stacks = 0
    for group in np.unique(optics_index):
        members = np.flatnonzero(optics_index == group)
        order = np.arange(len(members))
        stack_index[members] = stacks + order // images_per_stack
        image_index[members] = order % images_per_stack
        stacks = int(stack_index[members].max()) + 1
    return stack_index, image_index, stacks
