"""A series of frames along the motion, as a user gets it: maps, atomic models, the motion itself, script and movie."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from flex_job.atomic_model import write_atomic_models
from flex_job.chimerax import write_attribute, write_script
from flex_job.deformation import displacement_field, write_deformation, write_series_index
from flex_job.events import Events
from flex_job.files import path_aside, write_csv
from flex_job.fourier import fourier_resize
from flex_job.frame_grid import Window, cropping_window, on_grid, whole_window
from flex_job.generate import Support, frames, support
from flex_job.latent_paths import LatentSeries
from flex_job.model import FlexModel
from flex_job.model_series import ModelSeries
from flex_job.operator import MASK_LEVEL, voxel_domain
from flex_job.report.movie import draw_movie, ffmpeg, write_gif, write_mp4
from flex_job.report.surface import Surface, isosurface, principal_view
from flex_job.volume import Volume, write_volume
from job_specs.parameters import GenerateParameters

__all__ = ["FramesWriter", "shown_surface"]

MOVIE_BOX = 128  # what the movie's surface is contoured from at most
DUST = 5  # pixels: smaller pieces are hidden
TOLD_FRAMES = 10
OURS = re.compile(
    r"frame_\d+\.(mrc|cif)|frames\.(cif|zip)|canonical\.cif|geometry\.csv|motion\.defattr|deformation(_\d+\.vtu|\.pvd)|"
    r"displacement_\d+_[xyz]\.mrc|series\.(cxc|dcd|gif|mp4)"
)
"""What a series may consist of, beside latents.csv; what an earlier run left of it is removed."""


@dataclass
class FramesWriter:
    """Writes the frames of `series` to `folder`: `density`, in any box of the model map's extent, moved by `model`;
    with `atoms`, their model as well. `wanted` says what else."""

    folder: Path
    model: FlexModel
    density: Volume
    series: LatentSeries
    wanted: GenerateParameters
    events: Events
    atoms: ModelSeries | None = None

    def __post_init__(self) -> None:
        self.density = on_grid(self.density, self.wanted.frame_box)
        count = len(self.series.points)
        digits = max(3, len(str(count - 1)))
        self.names = [f"frame_{number:0{digits}d}.mrc" for number in range(count)]
        self.written: list[str] = []
        self.supported = support(self.model, self.series.points)

    def write(self) -> list[str]:
        """Everything that is wanted; returns the names of the files, in order."""
        window = whole_window(self.density.box)
        if self.wanted.crop:
            window = cropping_window(self.model, self.density, self.series.points, self.wanted.deformation)
        with self.events.stage("frames"):
            with self.events.part(0, 0.6):
                self._maps(window)
            write_points(self.folder / self._new("latents.csv"), self.names, self.series.points, self.supported)
            if self.wanted.deformation:
                self.events.progress(0.6, "deformation")
                self._deformation(window)
            if self.atoms is not None:
                self.events.progress(0.7, "atomic models")
                self._atoms(self.atoms)
            self.events.progress(0.8, "pictures")
            self._views()
            if self.wanted.zip:
                self.events.progress(0.9, "frames.zip")
                kept = [name for name in self.written if Path(name).suffix not in (".gif", ".mp4")]
                _zipped(self.folder / self._new("frames.zip"), self.folder, kept)
        for stale in self.folder.iterdir():
            if OURS.fullmatch(stale.name) and stale.name not in self.written:
                stale.unlink()
        return self.written

    def _new(self, name: str) -> str:
        self.written.append(name)
        return name

    def _maps(self, window: Window) -> None:
        found, names = self.supported, self.names
        for row, frame in enumerate(frames(self.model, self.density, self.series.points)):
            self.events.check_stop()
            cut = window.of(frame, self.density.corner_A)
            write_volume(self.folder / self._new(names[row]), cut.data, cut.pixel_size_A, cut.corner_A)
            near, std_A = found.particles[row], found.displacement_std_A[row]
            self.events.progress((row + 1) / len(names), f"frame {row + 1} of {len(names)}")
            self.events.message(
                f"{names[row]} of {len(names)}: {near:.3g} particles near, displacements of one known to {std_A:.2g} A"
            )
        if window.box < self.density.box:
            self.events.message(
                f"cropped from {self.density.box} to {window.box} px; the MRC headers' origins say where"
            )
        without = [name for name, missing in zip(names, found.missing, strict=True) if missing]
        if without:
            told = ", ".join([*without[:TOLD_FRAMES], *["..."] * (len(without) > TOLD_FRAMES)])
            self.events.message(
                f"warning: {len(without)} of {len(names)} frames have no particle near and are extrapolated ({told}): "
                "no image shows them"
            )

    def _deformation(self, window: Window) -> None:
        """deformation_000.vtu, ... and their index; displacement_000_x.mrc, ... on the grid of the frames."""
        mesh, density = self.model.mesh, self.density
        origin = np.array(density.corner_A) + (density.box // 2) * density.pixel_size_A
        domain = voxel_domain(mesh, fourier_resize(self.model.support, density.box), MASK_LEVEL)
        meshes = []
        for name, z in zip(self.names, self.series.points, strict=True):
            self.events.check_stop()
            number, shift = name[len("frame_") : -len(".mrc")], self.model.displacement(z[None])[0]
            meshes.append(self._new(f"deformation_{number}.vtu"))
            write_deformation(self.folder / meshes[-1], mesh, shift, origin)
            for axis, field in zip("xyz", displacement_field(domain, shift), strict=True):
                cut = window.of(Volume(field, density.pixel_size_A), density.corner_A)
                path = self.folder / self._new(f"displacement_{number}_{axis}.mrc")
                write_volume(path, cut.data, cut.pixel_size_A, cut.corner_A)
        write_series_index(self.folder / self._new("deformation.pvd"), meshes)

    def _atoms(self, atoms: ModelSeries) -> None:
        if atoms.start_A is not None:
            write_atomic_models(self.folder / self._new("canonical.cif"), atoms.model, [atoms.canonical()])
        atoms.write(self.folder, self.names, self.series.points, self.wanted.model_files)
        self._new("frames.cif")
        self._new("series.dcd")
        if self.wanted.model_files:
            self.written += [f"{name[:-4]}.cif" for name in self.names]
        atoms.write_geometry(self.folder / self._new("geometry.csv"), self.names)
        write_attribute(self.folder / self._new("motion.defattr"), atoms.model, atoms.motion_rms())
        for line in atoms.sentences():
            self.events.message(line)

    def _views(self) -> None:
        """The script for ChimeraX, and the movie."""
        found = shown_surface(self.model, self.density)
        if found is None:
            return
        surface, level = found
        largest_A = None if self.atoms is None else float(self.atoms.motion_rms().max())
        dust_A = DUST * self.density.pixel_size_A
        script = self.folder / self._new("series.cxc")
        write_script(script, len(self.names), level, dust_A, principal_view(surface), largest_A)
        if not self.wanted.movie or len(self.names) < 2:
            return
        movie = draw_movie(self.model, surface, self.series, self.supported)
        write_gif(self.folder / self._new("series.gif"), movie)
        program = ffmpeg()
        if program is None:
            self.events.message("series.mp4 is left out: there is no ffmpeg; install it, or the package imageio-ffmpeg")
            return
        try:
            write_mp4(self.folder / "series.mp4", movie, program)
            self._new("series.mp4")
        except (OSError, ValueError) as error:
            self.events.message(f"series.mp4 is left out: {error}")


def shown_surface(model: FlexModel, density: Volume) -> tuple[Surface, float] | None:
    """What pictures of the series show of `density`: its surface within the model's mask, coarse enough to be drawn
    often, and the level that it is at; None where there is none."""
    mask = np.clip(fourier_resize(model.support, density.box).data, 0, 1)
    dense = Volume(density.data * mask, density.pixel_size_A)
    positive = dense.data[dense.data > 0]
    if not len(positive):
        return None
    level = float(threshold_otsu(positive))
    surface = isosurface(on_grid(dense, min(dense.box, MOVIE_BOX)), level)
    return None if surface is None or len(surface.faces) < 4 else (surface, level)


def write_points(path: Path, names: Sequence[str], points: NDArray[np.floating], found: Support) -> None:
    """CSV: latents of each frame, particles near it, how well its motion is known."""
    latents = [f"flexLatent{k + 1}" for k in range(points.shape[1])]
    numbers = np.column_stack([points, found.particles, found.displacement_std_A]).tolist()
    rows = (
        [name, *(f"{value:.6g}" for value in row), "no" if missing else "yes"]
        for name, row, missing in zip(names, numbers, found.missing, strict=True)
    )
    write_csv(path, ["frame", *latents, "particles_near", "displacement_std_A", "supported"], rows)


def _zipped(path: Path, folder: Path, names: Iterable[str]) -> None:
    """The files in one archive; maps are mostly zero round the molecule, and pack well."""
    with path_aside(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            archive.write(folder / name, name)
