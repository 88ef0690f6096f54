"""Laws of the voxels' order: the Hilbert curve, and that nothing but memory depends on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.operator.domain import VoxelDomain, hilbert_index, rigid_domain, voxel_domain
from flex_job.operator.reference import ReferenceOperator
from flex_job.volume import Volume

PIXEL_A = 3.0


def ball(box: int, radius: float) -> Volume:
    z, y, x = np.indices((box,) * 3) - box // 2
    return Volume((x**2 + y**2 + z**2 <= radius**2).astype(np.float32), PIXEL_A)


def positions(domain: VoxelDomain) -> NDArray[np.int64]:
    """Grid indices (n, 3) in the domain's order."""
    return np.stack(np.unravel_index(domain.flat_index, (domain.box,) * 3), axis=1)


def extents(points: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    """Largest edge of the box around every run of `block` points."""
    whole = points[: len(points) // block * block].reshape(-1, block, 3)
    return np.ptp(whole, axis=1).max(axis=1) + 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_curve_steps_from_neighbour_to_neighbour_through_the_whole_cube(bits: int) -> None:
    grid = np.stack(np.unravel_index(np.arange(8**bits), (2**bits,) * 3), axis=1)
    place = hilbert_index(grid, bits)
    assert np.array_equal(np.sort(place), np.arange(8**bits))
    path = grid[np.argsort(place)]
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()
    # Its defining property: each of the eight octants is one run of the path.
    octants = path.reshape(8, -1, 3) >> (bits - 1)
    assert (octants == octants[:, :1]).all()


def test_runs_of_voxels_are_compact(mesh_of) -> None:
    """In cells of some twenty voxels, as in training, and in one cell that holds all of them."""
    support = ball(40, 16)
    small = voxel_domain(mesh_of((6, 6, 6), 2.2 * 16 * PIXEL_A), support)
    assert 10 < len(small) / len(small.vertices) < 30
    rigid, _ = rigid_domain(support)
    for domain, limit in ((small, 11), (rigid, 8)):
        points = positions(domain)
        assert len(np.unique(domain.flat_index)) == len(domain) == int(support.data.sum())
        assert np.median(extents(points, 128)) <= limit
        # Negative control: 128 voxels in the order of the grid are rows through the whole ball.
        assert np.median(extents(np.sort(domain.flat_index)[:, None] // np.array([1600, 40, 1]) % 40, 128)) > 2 * limit


def test_images_and_gradients_do_not_depend_on_the_order(mesh_of) -> None:
    mesh = mesh_of((2, 2, 2), 2.2 * 4 * PIXEL_A)
    domain = voxel_domain(mesh, ball(16, 4))
    rng = np.random.default_rng(0)
    cells = rng.permutation(len(domain.vertices))
    voxels = np.concatenate([rng.permutation(np.arange(*domain.start[c : c + 2])) for c in cells])
    shuffled = replace(
        domain,
        flat_index=domain.flat_index[voxels],
        local=domain.local[:, voxels],
        start=np.concatenate([[0], np.cumsum(np.diff(domain.start)[cells])]),
        vertices=domain.vertices[cells],
        gradients=domain.gradients[cells],
        offsets=domain.offsets[cells],
    )
    density = rng.normal(size=(16,) * 3).astype(np.float32)
    rotations = Rotation.random(3, random_state=1).as_matrix()[:, :2] / PIXEL_A
    q = torch.from_numpy(np.einsum("bac,vc->bva", rotations, mesh.vertices_A) + 8 + 0.5 * rng.normal(size=(3, 27, 2)))
    image = torch.from_numpy(rng.normal(size=(3, 16, 16)))
    found = []
    for each in (domain, shuffled):
        values = torch.from_numpy(each.gather(density)).double()
        operator = ReferenceOperator(each)
        to_values, to_q = operator.adjoint(image, q, values)
        assert to_q is not None
        found.append((operator.project(values, q, 16), to_q, torch.from_numpy(each.scatter(to_values.numpy()))))
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-6 * one.abs().max()


def test_a_subset_keeps_the_order(mesh_of) -> None:
    domain = voxel_domain(mesh_of((3, 3, 3), 2.2 * 5 * PIXEL_A), ball(16, 5))
    keep = np.random.default_rng(0).uniform(size=len(domain)) < 0.4
    assert np.array_equal(domain.subset(keep).flat_index, domain.flat_index[keep])
