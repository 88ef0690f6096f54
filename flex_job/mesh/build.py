"""From a map and its mask to the mesh that carries the motion."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flex_job.events import Events
from flex_job.mask import check_mask
from flex_job.mesh.inputs import read_cuts, read_mesh
from flex_job.mesh.lattice import lattice_mesh
from flex_job.mesh.locate import locate
from flex_job.mesh.region import SUPPORT_LEVEL, region_field
from flex_job.mesh.sampling import voxel_positions
from flex_job.mesh.segments import cell_segments, part_segments
from flex_job.mesh.surface import Surface, extract_surface
from flex_job.mesh.tetmesh import TetMesh, cell_quality, cell_volumes
from flex_job.mesh.topology import inner_faces, split_along
from flex_job.mesh.weights import RIGID_WEIGHT, motion_factor, rigidity_weights
from flex_job.volume import Volume
from job_specs.parameters import MeshParameters

__all__ = ["MINIMUM_QUALITY", "build_mesh", "fill_surface"]

# Mean-ratio quality below which a cell's gradients are too ill-conditioned for the rigidity term.
MINIMUM_QUALITY = 0.05
# Largest cell, in volumes of the regular tetrahedron of the wanted edge.
LARGEST_CELL = 1.5


# How far, in wanted edges, the mesh goes beyond the mask so that its rim of voxels is inside; more for thin masks.
MARGINS = (0.25, 0.4, 0.6)
# Part of the mask's inner voxels that may lie outside the mesh: a few do beside clefts and at corners cut by smoothing.
LARGEST_OUTSIDE = 0.01


class _Attempt(NamedTuple):
    """How to make the surface; `step` of sampling and `edge` of triangles in wanted edge lengths."""

    keep_clefts: bool
    step: float
    edge: float
    smoothing: int


# Best first. A thinned surface may cross itself in a narrow cleft, which tetgen refuses; another sampling of it mostly
# does not. The last ones, sampled as coarsely as a cell, need no thinning, but close clefts narrower than that.
ATTEMPTS = (
    _Attempt(keep_clefts=True, step=1 / 3, edge=0.9, smoothing=4),
    _Attempt(keep_clefts=True, step=1 / 3, edge=0.9, smoothing=8),
    _Attempt(keep_clefts=True, step=1 / 4, edge=0.9, smoothing=8),
    _Attempt(keep_clefts=True, step=1 / 2, edge=0.9, smoothing=8),
    _Attempt(keep_clefts=False, step=0.9, edge=0.9, smoothing=8),
    _Attempt(keep_clefts=False, step=0.9, edge=0.9, smoothing=0),
)


def build_mesh(
    map: Volume,
    mask: Volume,
    parameters: MeshParameters,
    zero_motion: Volume | None = None,
    segmentation: Volume | None = None,
    events: Events | None = None,
) -> TetMesh:
    """The mesh over the support of `mask`, with rigidity weights from `map`.

    The wanted edge length is the box's side over `parameters.tetra_cells`, as in cryoSPARC (its "base num. tetra
    cells" counts cells across the box). tetgen fills a smooth surface round the mask, in which narrow clefts stay
    open; a surface that it refuses is made simpler, and in the end a regular lattice takes its place, each with a
    message. The same input gives the same mesh.

    With a `segmentation`, cells take the segment that most of them lies in; segments not in `parameters.fuse` come
    apart, and cells of `parameters.rigid_segments` get RIGID_WEIGHT, many times the rigidity of the densest others.
    With `parameters.mesh` that file is used instead, and only `zero_motion` still applies.

    Raises ValueError, naming all problems at once, for unusable masks, segmentations and mesh files.
    """
    events = events or Events()
    started = time.monotonic()
    problems = check_mask(mask, map)
    cuts = read_cuts(parameters, map, zero_motion, segmentation, problems)
    if problems:
        raise ValueError("cannot build a mesh: " + "; ".join(problems))
    if parameters.mesh:
        mesh = _import(Path(parameters.mesh), mask, zero_motion, events)
    else:
        edge_A = map.box * map.pixel_size_A / parameters.tetra_cells
        vertices, cells = _fill_mask(mask, edge_A, events)
        segment = np.zeros(len(cells), dtype=np.int32)
        if cuts.labels is not None:
            segment = cell_segments(vertices, cells, cuts.labels, map.pixel_size_A)
            cells, origin = part_segments(cells, segment, cuts.fuse)
            vertices = vertices[origin]
        weights = rigidity_weights(vertices, cells, map, parameters.rigidity_min, parameters.stiffen_low_density)
        weights[np.isin(segment, list(cuts.rigid))] = RIGID_WEIGHT
        motion = motion_factor(vertices, cells, zero_motion)
        mesh = TetMesh(vertices, cells, weights, motion, segment)
    quality = cell_quality(mesh.vertices_A, mesh.cells)
    events.message(
        f"mesh: {len(mesh.vertices_A)} vertices, {len(mesh.cells)} cells, quality {quality.min():.2f} at worst and "
        f"{np.median(quality):.2f} in the middle, {time.monotonic() - started:.1f} s"
    )
    if zero_motion is not None and (mesh.motion > 0.5).all():
        events.message("mesh: WARNING the zero-motion mask holds no vertex of the mesh: it does not meet the mask")
    return mesh


def fill_surface(surface: Surface, edge_A: float) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Vertices (V, 3) and cells (T, 4) inside a closed surface, by tetgen. Raises RuntimeError when it cannot.

    Nothing is added on the surface, so its triangles stay; cells are no larger than LARGEST_CELL regular ones.
    """
    import tetgen  # here and not above: the lattice serves where it is not installed

    filler = tetgen.TetGen(surface.vertices_A, surface.triangles)
    vertices, cells = filler.tetrahedralize(
        plc=True,
        quality=True,
        nobisect=True,
        minratio=1.4,
        mindihedral=12.0,
        fixedvolume=True,
        maxvolume=LARGEST_CELL * edge_A**3 / (6 * np.sqrt(2)),
        quiet=True,
    )[:2]
    vertices = np.asarray(vertices, dtype=np.float64)
    return _positive(vertices, np.asarray(cells, dtype=np.int32))


def _fill_mask(mask: Volume, edge_A: float, events: Events) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """A sound mesh that holds the mask: by tetgen with growing margins, else a lattice. Parts that touch come apart."""
    core = voxel_positions(mask.data >= 0.5 * mask.data.max(), mask.pixel_size_A)
    core = core[:: 1 + len(core) // 100_000]
    for margin in MARGINS:
        filled = _filled_by_tetgen(mask, edge_A, margin * edge_A, events)
        if filled is None:
            break
        if _outside(*filled, core) <= LARGEST_OUTSIDE:
            return filled
        events.message("mesh: the mask is thin beside the cells and sticks out; trying a wider margin round it")
    events.message("mesh: using a regular lattice of cells; its boundary follows the mask in steps of a cell")
    vertices, cells = lattice_mesh(region_field(mask, edge_A, MARGINS[0] * edge_A), edge_A)
    cells, origin = split_along(cells, np.zeros(len(inner_faces(cells)), dtype=bool))
    return vertices[origin], cells


def _filled_by_tetgen(
    mask: Volume, edge_A: float, margin_A: float, events: Events
) -> tuple[NDArray[np.float64], NDArray[np.int32]] | None:
    """The first of ATTEMPTS that tetgen fills with sound cells, if any."""
    for attempt in ATTEMPTS:
        field = region_field(mask, edge_A, margin_A, attempt.keep_clefts)
        try:
            surface = extract_surface(field, attempt.step * edge_A, attempt.edge * edge_A, attempt.smoothing)
            vertices, cells = fill_surface(surface, edge_A)
        except (RuntimeError, ValueError, ImportError) as error:
            events.message(f"mesh: tetgen could not fill the surface ({error}); trying a simpler one")
            continue
        worst = float(cell_quality(vertices, cells).min())
        if worst >= MINIMUM_QUALITY:
            return vertices, cells
        events.message(f"mesh: worst cell of quality {worst:.3f}, below {MINIMUM_QUALITY}; trying a simpler surface")
    return None


def _outside(vertices: NDArray[np.float64], cells: NDArray[np.int32], points: NDArray[np.float64]) -> float:
    """The part of `points` (n, 3) that lies clearly outside all cells."""
    _, weights = locate(TetMesh.plain(vertices, cells), points)
    return float((weights.min(axis=1) < -0.1).mean())


def _positive(vertices: NDArray[np.float64], cells: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The same cells, all positively oriented."""
    inverted = cell_volumes(vertices, cells) < 0
    cells = cells.copy()
    cells[inverted] = cells[inverted][:, [0, 2, 1, 3]]
    return vertices, cells


def _import(path: Path, mask: Volume, zero_motion: Volume | None, events: Events) -> TetMesh:
    """The mesh of a file, ours or cryoSPARC's; must cover the mask. Raises ValueError."""
    mesh = read_mesh(path)
    if zero_motion is not None:
        held = np.minimum(mesh.motion, motion_factor(mesh.vertices_A, mesh.cells, zero_motion))
        mesh = TetMesh(mesh.vertices_A, mesh.cells, mesh.rigidity, held, mesh.segment)
    points = voxel_positions(mask.data > SUPPORT_LEVEL, mask.pixel_size_A)
    _, weights = locate(mesh, points)
    covered = float((weights.min(axis=1) >= -0.25).mean())
    if covered < 0.5:
        raise ValueError(
            f"{path}: the mesh covers only {100 * covered:.0f} % of the mask; expected a mesh made for this map "
            "(is it of another box, or another pixel size?)"
        )
    if covered < 0.95:
        events.message(
            f"mesh: WARNING {path} covers only {100 * covered:.0f} % of the mask; the rest moves with its rim"
        )
    return mesh
