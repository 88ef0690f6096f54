"""Laws of the mesh: weights, gradients, orientation, cover, topology."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.mask import soft_mask
from flex_job.mesh import TetMesh, build_mesh, cell_gradients, cell_quality, cell_volumes, locate
from flex_job.mesh.build import MINIMUM_QUALITY
from flex_job.mesh.lattice import lattice_mesh
from flex_job.mesh.locate import EXTRAPOLATION_LIMIT
from flex_job.mesh.region import region_field
from flex_job.mesh.sampling import voxel_positions
from flex_job.mesh.surface import extract_surface
from flex_job.mesh.topology import boundary_faces, inner_faces, split_along
from flex_job.volume import Volume
from job_specs.parameters import MeshParameters

PIXEL_A = 4.0
BOX = 48


def grid(box: int = BOX, pixel_size_A: float = PIXEL_A) -> NDArray[np.float64]:
    """Coordinates (3, z, y, x) as x, y, z in angstrom from the box centre."""
    z, y, x = np.indices((box, box, box)) - box // 2
    return np.stack([x, y, z]) * pixel_size_A


def capsule(a: list[float], b: list[float], radius: float) -> NDArray[np.bool_]:
    """Voxels within `radius` of the segment from a to b (xyz, angstrom)."""
    start, along = np.array(a), np.array(b) - np.array(a)
    relative = grid() - start[:, None, None, None]
    t = np.clip(np.einsum("i,i...->...", along, relative) / max(along @ along, 1e-9), 0, 1)
    return np.asarray(np.linalg.norm(relative - along[:, None, None, None] * t, axis=0) <= radius)


def three_lobes() -> NDArray[np.bool_]:
    """An antibody in outline: three lobes on thin hinges."""
    lobes = capsule([0, -60, 0], [0, -45, 0], 18) | capsule([45, 35, 0], [55, 45, 0], 18)
    lobes |= capsule([-45, 35, 0], [-55, 45, 0], 18)
    return (
        lobes
        | capsule([0, -60, 0], [0, 0, 0], 6)
        | capsule([0, 0, 0], [45, 35, 0], 6)
        | capsule([0, 0, 0], [-45, 35, 0], 6)
    )


def horseshoe(gap_A: float) -> NDArray[np.bool_]:
    """Two arms side by side, `gap_A` apart, joined at one end."""
    x, y, z = grid()
    arm = (np.abs(z) < 16) & (np.abs(y) < 56) & (np.abs(x) >= gap_A / 2) & (np.abs(x) < gap_A / 2 + 32)
    bridge = (np.abs(z) < 16) & (y >= 28) & (y < 56) & (np.abs(x) < gap_A / 2 + 32)
    return np.asarray(arm | bridge)


CASES = {
    "ball": capsule([0, 0, 0], [0, 0, 0], 40),
    "three lobes on thin hinges": three_lobes(),
    "horseshoe": horseshoe(16.0),
    "two pieces": capsule([-50, 0, 0], [-40, 0, 0], 16) | capsule([40, 0, 0], [50, 10, 0], 16),
    "thin rod": capsule([-60, 0, 0], [60, 20, 10], 4.5),
    "small ball": capsule([10, -8, 4], [10, -8, 4], 9),
}


def soft(binary: NDArray[np.bool_], edge_A: float = 5.0) -> Volume:
    return Volume(soft_mask(binary, edge_A / PIXEL_A), PIXEL_A)


def built(binary: NDArray[np.bool_], **changes: object) -> tuple[TetMesh, Volume]:
    mask = soft(binary)
    return build_mesh(mask, mask, MeshParameters(**changes)), mask  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def meshes() -> dict[str, tuple[TetMesh, Volume]]:
    return {name: built(binary) for name, binary in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_cells_are_positively_oriented_and_well_shaped(name: str, meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes[name]
    assert cell_volumes(mesh.vertices_A, mesh.cells).min() > 0
    quality = cell_quality(mesh.vertices_A, mesh.cells)
    assert quality.min() >= MINIMUM_QUALITY
    assert np.median(quality) > 0.7
    assert len(np.unique(mesh.cells)) == len(mesh.vertices_A)


@pytest.mark.parametrize("name", CASES)
def test_every_mask_voxel_has_a_cell_and_hardly_any_lies_outside(
    name: str, meshes: dict[str, tuple[TetMesh, Volume]]
) -> None:
    mesh, mask = meshes[name]
    cell, weights = locate(mesh, voxel_positions(mask.data > 0, PIXEL_A))
    assert cell.min() >= 0 and cell.max() < len(mesh.cells)
    inner, core = weights.min(axis=1), mask.data[mask.data > 0] >= 0.5
    assert (inner < -0.01).mean() < 0.06
    assert (inner[core] < -0.1).mean() <= 0.01
    assert np.abs(weights).max() <= 1 + EXTRAPOLATION_LIMIT + 1e-6


@pytest.mark.parametrize("name", CASES)
def test_weights_are_a_partition_of_unity_and_reproduce_affine_fields(
    name: str, meshes: dict[str, tuple[TetMesh, Volume]]
) -> None:
    mesh, mask = meshes[name]
    points = voxel_positions(mask.data >= 0.5, PIXEL_A)
    cell, weights = locate(mesh, points)
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-6
    random = np.random.default_rng(1)
    matrix, shift = random.normal(size=(3, 3)), random.normal(size=3)
    field = mesh.vertices_A @ matrix.T + shift
    found = np.einsum("pk,pkc->pc", weights, field[mesh.cells[cell]])
    inside = weights.min(axis=1) > -EXTRAPOLATION_LIMIT / 2
    expected = points @ matrix.T + shift
    assert np.abs(found - expected)[inside].max() < 1e-5 * np.abs(expected).max()
    # Negative control: weights of the neighbouring corner order do not.
    wrong = np.einsum("pk,pkc->pc", weights[:, [1, 0, 2, 3]], field[mesh.cells[cell]])
    assert np.abs(wrong - expected).max() > 1


def test_points_far_outside_have_bounded_weights(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes["ball"]
    directions = np.random.default_rng(2).normal(size=(200, 3))
    points = 500 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    cell, weights = locate(mesh, points)
    assert np.abs(weights.sum(axis=1) - 1).max() < 1e-5
    assert np.abs(weights).max() <= 1 + EXTRAPOLATION_LIMIT + 1e-6
    # The cell is on the near side of the ball.
    towards = (mesh.vertices_A[mesh.cells[cell]].mean(axis=1) * points).sum(axis=1)
    assert towards.min() > 0
    with pytest.raises(ValueError, match="finite"):
        locate(mesh, np.array([[0.0, np.nan, 0.0]]))


def test_locate_agrees_with_brute_force(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes["three lobes on thin hinges"]
    random = np.random.default_rng(3)
    true_cell = random.integers(0, len(mesh.cells), 500)
    true_weights = random.dirichlet(np.ones(4) * 2, 500)
    points = np.einsum("pk,pkc->pc", true_weights, mesh.vertices_A[mesh.cells[true_cell]])
    cell, weights = locate(mesh, points)
    assert np.array_equal(cell, true_cell)
    assert np.abs(weights - true_weights).max() < 1e-5


def test_gradients_are_exact_for_affine_fields(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes["three lobes on thin hinges"]
    gradients = cell_gradients(mesh)
    assert gradients.shape == (len(mesh.cells), 4, 3)
    assert np.abs(gradients.sum(axis=1)).max() < 1e-12
    matrix = np.random.default_rng(4).normal(size=(3, 3))
    displacement = mesh.vertices_A @ matrix.T + 7.0
    strain = np.einsum("tka,tkb->tab", displacement[mesh.cells], gradients)
    assert np.abs(strain - matrix).max() < 1e-10
    assert np.abs(strain - matrix.T).max() > 0.1


def test_rotating_the_whole_has_orthogonal_deformation_gradients(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes["ball"]
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()
    displacement = mesh.vertices_A @ rotation.T - mesh.vertices_A
    strain = np.einsum("tka,tkb->tab", displacement[mesh.cells], cell_gradients(mesh))
    singular = np.linalg.svd(np.eye(3) + strain, compute_uv=False)
    assert np.abs(singular - 1).max() < 1e-10


def test_finer_cells_are_finer_and_sized_by_the_box() -> None:
    for cells_across in (12, 20, 28):
        mesh, _ = built(CASES["ball"], tetra_cells=cells_across)
        pairs = np.concatenate([mesh.cells[:, [a, b]] for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))])
        length = np.linalg.norm(mesh.vertices_A[pairs[:, 0]] - mesh.vertices_A[pairs[:, 1]], axis=1)
        assert 0.8 < np.median(length) / (BOX * PIXEL_A / cells_across) < 1.2


def pieces(cells: NDArray[np.int32]) -> int:
    """Number of parts of a mesh that share no vertex."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = cells[:, [0, 0, 0]].ravel(), cells[:, 1:].ravel()
    count = cells.max() + 1
    return int(connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(count, count)))[0])


def test_mesh_has_the_pieces_of_the_mask(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    expected = {name: 1 for name in CASES} | {"two pieces": 2}
    assert {name: pieces(mesh.cells) for name, (mesh, _) in meshes.items()} == expected


def mesh_distance(mesh: TetMesh, start_A: list[float], end_A: list[float]) -> float:
    """Length of the shortest way along edges between the vertices nearest to two points."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    pairs = np.concatenate([mesh.cells[:, [a, b]] for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    length = np.linalg.norm(mesh.vertices_A[pairs[:, 0]] - mesh.vertices_A[pairs[:, 1]], axis=1)
    links = coo_matrix((length, pairs.T), shape=(len(mesh.vertices_A),) * 2)
    first, last = (int(np.argmin(np.linalg.norm(mesh.vertices_A - p, axis=1))) for p in (start_A, end_A))
    return float(dijkstra(links.tocsr(), directed=False, indices=first)[last])


def test_arms_beside_a_narrow_cleft_are_not_glued() -> None:
    """The gap is as wide as a cell and half closed by the mask's soft edge; the arms must not hang together there."""
    mesh, _ = built(horseshoe(16.0))
    ends = [-24.0, -50.0, 0.0], [24.0, -50.0, 0.0]
    assert mesh_distance(mesh, *ends) > 130  # round by the bridge at y = 28 and above
    # Negative control: with no gap the way is straight.
    glued, _ = built(horseshoe(0.0))
    assert mesh_distance(glued, [-16.0, -50.0, 0.0], [16.0, -50.0, 0.0]) < 60


def test_surface_is_closed_and_round_the_region() -> None:
    field = region_field(soft(CASES["ball"]), edge_A=10.0, margin_A=2.5)
    surface = extract_surface(field, step_A=10 / 3, edge_A=9.0)
    sides = np.concatenate([surface.triangles[:, [0, 1]], surface.triangles[:, [1, 2]], surface.triangles[:, [2, 0]]])
    assert len(np.unique(sides, axis=0)) == len(sides)
    assert {tuple(s) for s in sides} == {tuple(s[::-1]) for s in sides}
    corners = surface.vertices_A[surface.triangles]
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    region = (field.values_A > 0).sum() * field.step_A**3
    assert abs(volume / region - 1) < 0.1
    assert np.abs(field.at(surface.vertices_A)).max() < 4


def test_lattice_covers_the_region_with_equal_cells() -> None:
    mask = soft(CASES["three lobes on thin hinges"])
    field = region_field(mask, edge_A=10.0, margin_A=0.0, keep_clefts=False)
    vertices, cells = lattice_mesh(field, edge_A=10.0)
    mesh = TetMesh.plain(vertices, cells)
    quality = cell_quality(vertices, cells)
    assert np.ptp(quality) < 1e-9 and quality.min() > 0.9
    assert np.ptp(cell_volumes(vertices, cells)) < 1e-6
    _, weights = locate(mesh, voxel_positions(mask.data > 0, PIXEL_A))
    assert (weights.min(axis=1) < -1e-6).mean() < 0.005


def test_boundary_and_inner_faces_count_every_face_once(meshes: dict[str, tuple[TetMesh, Volume]]) -> None:
    mesh, _ = meshes["ball"]
    outer, inner = boundary_faces(mesh.cells), inner_faces(mesh.cells)
    assert len(outer) + 2 * len(inner) == 4 * len(mesh.cells)
    vertices = mesh.cells.ravel()[inner]
    assert np.array_equal(vertices[:, 0], vertices[:, 1])
    # Outward normals: the divergence theorem gives the volume of all cells.
    corners = mesh.vertices_A[outer]
    enclosed = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert enclosed == pytest.approx(cell_volumes(mesh.vertices_A, mesh.cells).sum())


def test_splitting_along_no_face_changes_nothing_and_along_all_parts_every_cell(
    meshes: dict[str, tuple[TetMesh, Volume]],
) -> None:
    mesh, _ = meshes["ball"]
    faces = len(inner_faces(mesh.cells))
    same, origin = split_along(mesh.cells, np.zeros(faces, dtype=bool))
    assert np.array_equal(same, mesh.cells) and np.array_equal(origin, np.arange(len(mesh.vertices_A)))
    apart, origin = split_along(mesh.cells, np.ones(faces, dtype=bool))
    assert len(origin) == mesh.cells.size
    assert np.array_equal(origin[apart], mesh.cells)


def test_cells_that_touch_at_one_vertex_only_come_apart() -> None:
    cells = np.array([[0, 1, 2, 3], [3, 4, 5, 6]], dtype=np.int32)
    parted, origin = split_along(cells, np.zeros(0, dtype=bool))
    assert len(origin) == 8 and len(np.intersect1d(parted[0], parted[1])) == 0
