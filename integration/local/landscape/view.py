"""What the landscape page shows of a finished job: its particles' latents, its surface, its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.calibration import Calibration
from flex_job.generate import latent_path, support
from flex_job.half_maps import map_files
from flex_job.manifest import recorded
from flex_job.mean_image import SideViews, side_views
from flex_job.mesh.points import MeshPoints
from flex_job.model import FlexModel
from flex_job.motion import motion_amplitude
from flex_job.problems import InputProblems
from flex_job.refine import GAINS, MODELS
from flex_job.report.moving import coarse_surface
from flex_job.report.panels_latents import particle_colours
from flex_job.report.surface import Surface, principal_view, sample_at
from flex_job.volume import read_volume
from integration.common.particle_formats import particle_format

__all__ = ["JobView"]

PARTICLES = ("particles.star", "particles.cs")
IMAGES = 40  # in a mean


@dataclass(frozen=True)
class JobView:
    """`latents` are (n, K), `gains` (n,) nats or None; `surface` at rest in the frame of `view` (3, 3), with
    `amplitude_A` at its points and `bound` to the mesh; `sides` are None where the images cannot be read, `no_images`
    says why."""

    folder: Path
    particles: Path
    model: FlexModel
    gains: NDArray[np.floating] | None
    surface: Surface
    view: NDArray[np.float64]
    amplitude_A: NDArray[np.float64]
    bound: MeshPoints
    sides: SideViews | None
    no_images: str

    @classmethod
    def load(cls, folder: Path) -> JobView:
        """Of a job directory. Raises InputProblems when it holds no motion model or none of its particles."""
        names = [name for name in PARTICLES if (folder / name).is_file()]
        if not (folder / MODELS[0]).is_file() or not names:
            missing = MODELS[0] if not (folder / MODELS[0]).is_file() else " or ".join(PARTICLES)
            raise InputProblems(
                [f"{folder}: there is no {missing}; expected the directory of a finished job `refine` or `train`"]
            )
        try:
            model = FlexModel.load(folder / MODELS[0])
        except ValueError as error:
            raise InputProblems([str(error)]) from None
        path = folder / map_files("flex")[-1]
        density = read_volume(path) if path.is_file() else model.map
        mask = read_volume(folder / "mask.mrc") if (folder / "mask.mrc").is_file() else model.support
        surface = coarse_surface(density, mask)
        if surface is None:
            raise InputProblems([f"{path}: holds no density above its mean within the mask; there is nothing to show"])
        particles = folder / names[0]
        low, high = model.displacement(latent_path(model.latents, 0, 2))
        sides, why = _sides(folder, particles, high - low)
        gains = np.load(folder / GAINS, allow_pickle=False) if (folder / GAINS).is_file() else None
        if gains is not None and gains.shape != (len(model.latents),):
            gains = None
        return cls(
            folder=folder,
            particles=particles,
            model=model,
            gains=gains,
            surface=surface,
            view=principal_view(surface) if sides is None else sides.view,
            amplitude_A=sample_at(motion_amplitude(model).volume, surface.points_A),
            bound=MeshPoints.at(model.mesh, surface.points_A),
            sides=sides,
            no_images=why,
        )

    @property
    def latents(self) -> NDArray[np.float32]:
        return self.model.latents

    @property
    def median(self) -> NDArray[np.float64]:
        return np.median(self.latents.astype(np.float64), axis=0)

    def points(self, at: NDArray[np.floating]) -> NDArray[np.float32]:
        """The surface's points (N, 3) at latents `at` (K,), in the frame of the view."""
        bent = self.surface.points_A + self.bound.carried(self.model.displacement(at[None])[0])
        return (bent @ self.view.T).astype(np.float32)

    def near(self, at: NDArray[np.floating]) -> float:
        """How many particles lie near `at` (K,)."""
        return float(support(self.model, at[None]).particles[0])

    def image(self, at: NDArray[np.floating]) -> NDArray[np.float32] | None:
        """Mean (b, b) of the images nearest to `at` (K,) among those seen from the side of the view."""
        return None if self.sides is None else self.sides.mean(self.latents, at, IMAGES)

    def colours(self) -> dict[str, NDArray[np.floating]]:
        """What particles can be coloured by."""
        return particle_colours(self.model.latent_std, self.gains)


def _sides(folder: Path, particles: Path, displacements_A: NDArray[np.floating]) -> tuple[SideViews | None, str]:
    """The images seen from one side; or None and why there are none: the rest of the page does without."""
    try:
        maps = [folder / map_files("flex")[-1], Path(recorded(folder).get("read", {}).get("map", folder / "none"))]
        found = next((path for path in maps if path.is_file()), None)  # without one, that beside the particles
        consensus = particle_format(particles).read_consensus(particles, map_path=found, mask_path=folder / "mask.mrc")
        kept = folder / "prep.npz"
        sign = int(Calibration.load(kept).sign) if kept.is_file() else 1
        return side_views(consensus, displacements_A, sign), ""
    except (InputProblems, ValueError, OSError) as error:
        return None, f"the particles' images cannot be read: {' '.join(str(error).split())}"
