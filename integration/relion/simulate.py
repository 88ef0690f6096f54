"""Write simulated particles of a moving molecule as a RELION 3.1 project, with the truth beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import gemmi
import mrcfile
import numpy as np
from numpy.typing import NDArray

from flex_job.atomic_model import mmcif_groups
from flex_job.consensus import OpticsGroup
from flex_job.files import path_aside
from flex_job.simulation.atoms import default_sigma_A
from flex_job.simulation.cases import atoms_of, conformations_of, named_states
from flex_job.simulation.images import BATCH, amplitude_scale, recorded_images
from flex_job.simulation.maps import ConsensusMaps, consensus_maps, population
from flex_job.simulation.micelle import with_micelle
from flex_job.simulation.motion import Conformations
from flex_job.simulation.particles import Recording, SimulatedParticles, draw_particles
from flex_job.simulation.project import exact_density
from flex_job.volume import Volume, write_volume
from integration.relion.simulated_refinement import MASK_JOB, REFINE_JOB, write_refinement

__all__ = ["SimulatedProject", "simulate_project"]

IMAGES_PER_STACK = 2000
TRUTH_README = """\
What these simulated particles really are. No job reads this folder; it is for scoring results.

truth.npz
  latents (n, k)          hinge coordinates of the particles, in the order of {job}/run_data.star, from -1 to 1
  angles_deg (n, k)       the hinge angles they stand for
  rotations (n, 3, 3)     true rotations, map to view (xyz); run_data.star has them with the pose error
  state_latents (m, k)    latents of state_000.mrc, state_001.mrc, ...
  snr, seed, amplitude_scale, pixel_size_A, box, motion
state_000.mrc ...         exact densities at these latents, on the scale of the images: summed over z they are the
                          projection without CTF that lies in the (uninverted) images
consensus.mrc             the exact average over all conformations
model.cif                 the atoms, as somebody would build them into the consensus map (not for the spliceosome)

run_half1/2_class001_unfil.mrc are that average plus white noise, not reconstructions of the particles;
run_class001.mrc is their mean, filtered.
"""


@dataclass(frozen=True)
class SimulatedProject:
    """What was written to `folder`. `conformations` is on the images' scale: `density(latent)` scores a map."""

    folder: Path
    particles_star: Path
    conformations: Conformations
    particles: SimulatedParticles
    state_latents: NDArray[np.float64]

    def density(self, latent: Sequence[float]) -> Volume:
        """The exact density at `latent` (k,), on the consensus map's grid."""
        grid = self.particles.true.map
        return exact_density(self.conformations, np.asarray(latent, dtype=np.float64), grid.box, grid.pixel_size_A)


def simulate_project(
    folder: str | Path,
    *,
    motion: str = "one_hinge",
    particles: int = 6000,
    box: int = 64,
    pixel_size_A: float = 4.0,
    snr: float = 0.1,
    seed: int = 0,
    noise: str = "white",
    amplitudes_deg: Sequence[float] = (20.0, 20.0),
    structure: str | Path = "",
    domains: str = "",
    micelle: bool = False,
    two_states: bool = False,
    fixed_latent: Sequence[float] | None = None,
    pose_error_deg: float = 0.0,
    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0),
    optics: Sequence[OpticsGroup] | None = None,
    inverted: bool = False,
    float16: bool = False,
    sigma_A: float | None = None,
    consensus_resolution_A: float | None = None,
    **recording: Any,
) -> SimulatedProject:
    """Simulate `particles` images and write `folder` as a RELION project: Particles/, Refine3D/job001/,
    MaskCreate/job002/, default_pipeline.star and truth/.

    `motion`, `amplitudes_deg`, `structure` and `domains` are as `conformations_of` takes them; `micelle` puts the part
    that stays into one. Latents are spread evenly, or at either end and nowhere between (`two_states`), or all at
    `fixed_latent`. `box` and `pixel_size_A` are the map's, and the images' unless `optics` lists
    other groups. `consensus_resolution_A` (default 2.5 pixels) says where the half-maps' FSC falls to 1/7. Further
    keywords go to `Recording`. Nothing but the folder's own files of these names is overwritten. Raises ValueError
    with what is wrong with the values.
    """
    folder = Path(folder).resolve()
    how = Recording(snr=snr, noise=noise, pose_error_deg=pose_error_deg, inverted=inverted, **recording)
    sigma_A = sigma_A or default_sigma_A(pixel_size_A)
    unscaled = conformations_of(motion, sigma_A, amplitudes_deg, structure, domains)
    if micelle:
        unscaled = with_micelle(unscaled)
    if two_states:
        unscaled = replace(unscaled, levels=(-1.0, 1.0))
    latent = None if fixed_latent is None else np.asarray(fixed_latent, dtype=np.float64)
    groups = tuple(optics or [OpticsGroup("opticsGroup1", box, pixel_size_A, 300.0, 2.7, 0.1, beam_tilt_mrad)])
    _check_fit(unscaled, [(box, pixel_size_A), *((group.box, group.pixel_size_A) for group in groups)])
    grid = Volume(np.zeros((box,) * 3, dtype=np.float32), float(pixel_size_A))
    drawn = draw_particles(
        unscaled,
        particles,
        groups,
        how,
        grid,
        seed=seed,
        fixed_latent=latent,
        images_per_stack=IMAGES_PER_STACK,
        stack_folder=folder / "Particles",
    )
    scale = amplitude_scale(unscaled, drawn.latents, drawn.true, snr, seed)
    conformations = replace(unscaled, beads=unscaled.beads.scaled(scale))
    resolution_A = consensus_resolution_A or 2.5 * pixel_size_A
    maps = consensus_maps(conformations, population(conformations, latent), box, pixel_size_A, resolution_A, seed)
    refined, true = (
        replace(which, map=maps.filtered, half_maps=maps.half_maps, mask=maps.mask)
        for which in (drawn.refined, drawn.true)
    )
    drawn = SimulatedParticles(refined, true, drawn.latents)
    states = named_states(unscaled) if latent is None else latent[None]
    project = SimulatedProject(folder, folder / REFINE_JOB / "run_data.star", conformations, drawn, states)
    for name in ("Particles", REFINE_JOB, MASK_JOB, "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_stacks(project, how, seed, float16)
    write_refinement(folder, drawn.refined, maps, resolution_A)
    facts = {"snr": snr, "seed": seed, "amplitude_scale": scale, "motion": motion}
    facts |= {"structure": str(structure), "domains": domains}
    model = atoms_of(motion, np.full(3, box // 2 * pixel_size_A), structure, domains)
    _write_truth(project, maps, facts, model)
    return project


def _check_fit(conformations: Conformations, grids: list[tuple[int, float]]) -> None:
    """Every conformation must lie in every box at any orientation. Raises ValueError with the smallest box."""
    corners = np.array(list(product((-1.0, 0.0, 1.0), repeat=conformations.latent_dims)))
    reach_A = float(np.linalg.norm(conformations.positions(corners), axis=-1).max())
    needed_A = 2.0 * (reach_A + 3.0 * conformations.beads.sigma_A)
    small = [f"{box} px of {pixel:g} A" for box, pixel in grids if box * pixel < needed_A or box % 2]
    if small:
        raise ValueError(
            f"the molecule needs an even box of {needed_A:.0f} A or more at all angles; given {', '.join(small)}: "
            "take more or larger pixels"
        )


def _write_stacks(project: SimulatedProject, how: Recording, seed: int, float16: bool) -> None:
    true, latents = project.particles.true, project.particles.latents
    for number, path in enumerate(true.stack_paths):
        members = np.flatnonzero(true.stack_index == number)
        group = true.optics[true.optics_index[members[0]]]
        shape, mode = (len(members), group.box, group.box), 12 if float16 else 2
        with path_aside(path) as aside, mrcfile.new_mmap(aside, shape, mrc_mode=mode, overwrite=True) as stack:
            for start in range(0, len(members), BATCH):
                batch = members[start : start + BATCH]
                stack.data[start : start + len(batch)] = recorded_images(
                    project.conformations, latents, true, batch, how, seed
                )
            stack.set_image_stack()
            stack.voxel_size = group.pixel_size_A
            stack.update_header_stats()


def _write_truth(
    project: SimulatedProject, maps: ConsensusMaps, facts: dict[str, Any], model: gemmi.Structure | None
) -> None:
    truth, drawn = project.folder / "truth", project.particles
    for number, latent in enumerate(project.state_latents):
        volume = project.density(latent)
        write_volume(truth / f"state_{number:03d}.mrc", volume.data, volume.pixel_size_A)
    write_volume(truth / "consensus.mrc", maps.exact.data, maps.exact.pixel_size_A)
    if model is not None:
        model.make_mmcif_document(mmcif_groups()).write_file(str(truth / "model.cif"))
    np.savez(
        truth / "truth.npz",
        latents=drawn.latents,
        angles_deg=np.rad2deg(project.conformations.angles_rad(drawn.latents)),
        rotations=drawn.true.rotations,
        state_latents=project.state_latents,
        pixel_size_A=maps.exact.pixel_size_A,
        box=maps.exact.box,
        **facts,
    )
    (truth / "README").write_text(TRUTH_README.format(job=REFINE_JOB))
