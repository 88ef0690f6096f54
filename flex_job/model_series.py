"""An atomic model along a series of frames: moved by the flow, written, and its geometry compared with the file's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.atom_motion import RigidResidues, taken_back
from flex_job.atomic_model import AtomicModel, write_atomic_models
from flex_job.dcd import there_and_back
from flex_job.files import write_csv
from flex_job.mesh.points import MeshPoints
from flex_job.model import FlexModel
from flex_job.model_geometry import LONGEST_PEPTIDE_A, Geometry, ModelGeometry

__all__ = ["ModelSeries"]

Floats = NDArray[np.float64]


@dataclass
class ModelSeries:
    """A model of n atoms in the motion of `flow`. `start_A` (V, 3) are the mesh's vertices in the frame that the model
    was built in, None for the canonical one; with `rigid` residues keep their geometry."""

    flow: FlexModel
    model: AtomicModel
    start_A: Floats | None
    rigid: bool

    def __post_init__(self) -> None:
        self._places, self._sure = self.model.positions_A, np.ones(len(self.model), dtype=bool)
        if self.start_A is not None:
            self._places, self._sure = taken_back(self.flow.mesh, self._places, self.start_A, self.model.thread)
        self.motion = MeshPoints.at(self.flow.mesh, self._places)
        self._residues = RigidResidues(self.model) if self.rigid else None
        self._geometry = ModelGeometry(self.model)
        self.geometry: list[Geometry] = []
        self._sum, self._square, self._seen = np.zeros((len(self.model), 3)), np.zeros(len(self.model)), 0

    def canonical(self) -> Floats:
        """(n, 3) in the map's own frame, from which the motion starts."""
        return self._moved(self.flow.mesh.vertices_A)

    def frames(self, points: NDArray[np.floating]) -> Iterator[Floats]:
        """(n, 3) at each of the latents `points` (m, K). What it was like is then in `geometry` and `motion_rms`."""
        for z in points:
            placed = self._moved(self.flow.mesh.vertices_A + self.flow.displacement(z[None])[0])
            self.geometry.append(self._geometry(placed))
            shift = placed - self.model.positions_A
            self._sum += shift
            self._square += (shift**2).sum(axis=1)
            self._seen += 1
            yield placed

    def motion_rms(self) -> Floats:
        """(R,) how far each residue moved over the frames so far: root mean square about its mean place, angstroms."""
        count = max(self._seen, 1)
        square = self._square / count - ((self._sum / count) ** 2).sum(axis=1)
        sums = np.bincount(self.model.residue, weights=np.clip(square, 0, None))
        return np.sqrt(sums / np.bincount(self.model.residue))

    def write(self, folder: Path, names: Sequence[str], points: NDArray[np.floating], each: bool) -> None:
        """frames.cif, series.dcd with the same there and back (one conformation of each atom), and with `each` a file
        per frame: `names` with .cif for .mrc."""
        with there_and_back(folder / "series.dcd") as show:

            def written() -> Iterator[Floats]:
                for name, placed in zip(names, self.frames(points), strict=True):
                    if each:
                        write_atomic_models(folder / Path(name).with_suffix(".cif"), self.model, [placed])
                    show((placed + self.model.origin_A)[self.model.first_conformation])
                    yield placed

            write_atomic_models(folder / "frames.cif", self.model, written())

    def write_geometry(self, path: Path, names: Sequence[str]) -> None:
        """CSV: a row for each frame."""
        columns = ["frame", *(field.name for field in fields(Geometry))]
        rows = zip(names, self.geometry, strict=True)
        write_csv(path, columns, ([name, *(f"{value:.4g}" for value in of.named().values())] for name, of in rows))

    def sentences(self) -> Iterator[str]:
        """What a user should know of the frames so far."""
        outside = int((~self.motion.inside).sum())
        if outside:
            share = 100 * outside / len(self.model)
            yield (
                f"{'warning: ' if share > 10 else ''}{outside} of {len(self.model)} atoms ({share:.1f} %) lie outside "
                "the mesh and move with its nearest part"
            )
        if not self._sure.all():
            count = int((~self._sure).sum())
            yield (
                f"{count} of {len(self.model)} atoms were taken back with those around them: the motion runs parts "
                "into each other there"
            )
        worst = {
            field.name: max((float(getattr(each, field.name)) for each in self.geometry), default=np.nan)
            for field in fields(Geometry)
        }
        yield (
            f"models: at most, in one frame, bonds within residues change by {worst['bonds_within_A']:.3f} A and bonds "
            f"between them by {worst['bonds_between_A']:.3f} A (root mean square), phi by {worst['phi_deg']:.1f} and "
            f"psi by {worst['psi_deg']:.1f} degrees; {worst['long_peptide_bonds']:.0f} of {worst['peptide_bonds']:.0f} "
            f"peptide bonds are longer than {LONGEST_PEPTIDE_A:g} A"
        )

    def _moved(self, end_A: Floats) -> Floats:
        placed = self.motion.moved(self._places, end_A)
        return placed if self._residues is None else self._residues.fitted(placed)
