"""Laws of the rigidity prior and of the soft modes that come from its Hessian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.elastic import soft_modes
from flex_job.mesh import TetMesh, cell_gradients
from flex_job.mesh.tetmesh import cell_volumes
from flex_job.rigidity import STRAIN_UNIT, YIELD, Rigidity, orthogonal_factor


@pytest.fixture(scope="module")
def mesh(mesh_of) -> TetMesh:
    """Three by two by two cubes with jittered vertices and uneven weights: no accidental symmetry."""
    rng = np.random.default_rng(0)
    plain = mesh_of((3, 2, 2), np.array([60.0, 40, 40]))
    moved = plain.vertices_A + rng.uniform(-2, 2, plain.vertices_A.shape)
    return replace(plain, vertices_A=moved, rigidity=rng.uniform(0.5, 1, len(plain.cells)).astype(np.float32))


def by_svd(mesh: TetMesh, u: torch.Tensor) -> torch.Tensor:
    """The energy by singular values, as the paper writes the strain (float64, differentiable)."""
    gradient = torch.einsum("btka,tkc->btac", u[:, torch.from_numpy(mesh.cells).long()], double_gradients(mesh))
    sigma = torch.linalg.svdvals(gradient + torch.eye(3, dtype=torch.float64))
    weights = torch.from_numpy(mesh.rigidity).double()
    cost = YIELD**2 * torch.log1p((sigma - 1).square().sum(-1) / YIELD**2)
    return STRAIN_UNIT * (cost * weights / weights.sum()).sum(-1).mean()


def double_gradients(mesh: TetMesh) -> torch.Tensor:
    """In the precision that Rigidity keeps them in, so that both sides are the same function."""
    return torch.from_numpy(cell_gradients(mesh).astype(np.float32)).double()


def affine(mesh: TetMesh, matrix: NDArray, shift: NDArray | float = 0.0) -> torch.Tensor:
    """Displacements (1, V, 3) that take x to matrix x + shift."""
    return torch.from_numpy(mesh.vertices_A @ np.asarray(matrix).T + shift - mesh.vertices_A)[None]


def random_field(mesh: TetMesh, size_A: float, seed: int = 0, batch: int = 2) -> torch.Tensor:
    return torch.from_numpy(size_A * np.random.default_rng(seed).normal(size=(batch, *mesh.vertices_A.shape)))


# -- energy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_zero_for_any_rigid_motion(mesh: TetMesh, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    u = affine(mesh, rotation, rng.normal(size=3) * 50)
    assert float(Rigidity(mesh).energy(u)) < 1e-9 * STRAIN_UNIT
    # Negative control: the same with 1 % of stretch is not.
    assert float(Rigidity(mesh).energy(affine(mesh, 1.01 * rotation))) > 1e-4 * STRAIN_UNIT


@pytest.mark.parametrize("stretch", [0.5, 0.97, 1.0, 1.02, 1.5])
def test_closed_form_under_uniform_strain(mesh: TetMesh, stretch: float) -> None:
    principal = np.array([stretch, 1.0, 2 - stretch / 2])
    first, second = Rotation.random(2, random_state=1).as_matrix()
    expected = STRAIN_UNIT * YIELD**2 * np.log1p(((principal - 1) ** 2).sum() / YIELD**2)
    found = float(Rigidity(mesh).energy(affine(mesh, first @ np.diag(principal) @ second)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_weights_pick_the_cells(mesh: TetMesh) -> None:
    """A cell of weight zero may strain for nothing; scaling all weights changes nothing, for it is a mean."""
    u = random_field(mesh, 1.0)
    energy = float(Rigidity(mesh).energy(u))
    assert float(Rigidity(replace(mesh, rigidity=7 * mesh.rigidity)).energy(u)) == pytest.approx(energy, rel=1e-5)
    only = np.zeros_like(mesh.rigidity)
    only[3] = 1
    moved = torch.zeros(1, len(mesh.vertices_A), 3, dtype=torch.float64)
    outside = np.setdiff1d(np.arange(len(mesh.vertices_A)), mesh.cells[3])
    moved[:, outside] = random_field(mesh, 3.0)[:1, outside]
    assert float(Rigidity(replace(mesh, rigidity=only)).energy(moved)) < 1e-9
    assert float(Rigidity(mesh).energy(moved)) > 1


@pytest.mark.parametrize("size_A", [0.1, 1.0, 3.0, 10.0])
def test_energy_equals_the_sum_over_singular_values(mesh: TetMesh, size_A: float) -> None:
    u = random_field(mesh, size_A, batch=4)
    deformation = Rigidity(mesh).deformation(u)
    if size_A >= 10:
        assert float((torch.linalg.det(deformation) < 0).double().mean()) > 0.1  # inverted cells are among them
    assert float(Rigidity(mesh).energy(u)) == pytest.approx(float(by_svd(mesh, u)), rel=1e-4)


def test_a_hinge_costs_less_than_the_same_bend_spread_over_all(mesh_of) -> None:
    """A shear of 2 in one of ten layers of cells against 0.2 in all: squares would make the first ten times as dear."""
    mesh = mesh_of((10, 2, 2), np.array([200.0, 40, 40]))
    x = mesh.vertices_A[:, 0] - mesh.vertices_A[:, 0].min()

    def sheared(first: float, last: float) -> float:
        u = np.zeros_like(mesh.vertices_A)
        u[:, 1] = 40.0 * np.clip((x - first) / (last - first), 0, 1)
        return float(Rigidity(mesh).energy(torch.from_numpy(u)[None]))

    assert sheared(80, 100) < 0.7 * sheared(0, 200)
    small = 1e-3  # within what does not yield it is the other way round
    u = np.zeros((2, *mesh.vertices_A.shape))
    u[0, :, 1] = small * np.clip((x - 80) / 20, 0, 1)
    u[1, :, 1] = small * x / 200
    energies = [float(Rigidity(mesh).energy(torch.from_numpy(field)[None])) for field in u]
    assert energies[0] > 5 * energies[1]


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_orthogonal_factor_is_the_polar_factor(dtype: torch.dtype, limit: float) -> None:
    """Of deformations that a mesh may have, reflections among them: singular values from 0.2 to 5."""
    rng = np.random.default_rng(2)
    left, right = (Rotation.random(500, random_state=seed).as_matrix() for seed in (3, 4))
    sigma = np.exp(rng.uniform(np.log(0.2), np.log(5), (500, 3)))
    left[::2, :, 0] *= -1
    a = torch.from_numpy(left * sigma[:, None] @ right)
    found = orthogonal_factor(a.to(dtype))
    assert found.dtype == dtype
    assert float((found.double() - torch.from_numpy(left @ right)).abs().max()) < limit


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("size_A", [0.3, 3.0])
def test_compiled_and_plain_energy_agree(mesh_of, dtype: torch.dtype, limit: float, size_A: float) -> None:
    """Value and gradient, on a mesh of more cells than the compiled code takes at a time and no multiple of it."""
    mesh = mesh_of((5, 4, 3), np.array([100.0, 80, 60]))
    assert len(mesh.cells) == 360
    rigidity = Rigidity(mesh)
    u = random_field(mesh, size_A, batch=3).to(dtype).requires_grad_()
    energies = rigidity.energy(u), rigidity.energy_by_torch(u)
    found, expected = (torch.autograd.grad(3 * energy, u)[0] for energy in energies)
    assert float(energies[0].detach()) == pytest.approx(float(energies[1].detach()), rel=limit)
    assert float((found - expected).norm() / expected.norm()) < limit


def test_a_flat_cell_gives_finite_energy_and_gradient(mesh: TetMesh) -> None:
    u = affine(mesh, np.diag([1.0, 1.0, 0.0])).float().requires_grad_()
    energy = Rigidity(mesh).energy(u)
    (gradient,) = torch.autograd.grad(energy, u)
    assert float(energy.detach()) == pytest.approx(STRAIN_UNIT * YIELD**2 * np.log1p(1 / YIELD**2), rel=0.05)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("size_A", [0.3, 2.0])
def test_gradient_equals_that_through_the_singular_values(mesh: TetMesh, size_A: float) -> None:
    u = random_field(mesh, size_A).requires_grad_()
    (found,) = torch.autograd.grad(Rigidity(mesh).energy(u), u)
    (expected,) = torch.autograd.grad(by_svd(mesh, u), u)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_gradcheck_though_the_rotation_is_held(mesh_of) -> None:
    mesh = mesh_of((1, 1, 1), 20.0)
    u = (0.5 * torch.from_numpy(np.random.default_rng(1).normal(size=(1, 8, 3)))).requires_grad_()
    assert torch.autograd.gradcheck(Rigidity(mesh).energy, (u,), eps=1e-5, atol=1e-5)


# -- stiffness ---------------------------------------------------------------------------------------------------


def test_stiffness_is_the_hessian_at_rest(mesh: TetMesh) -> None:
    stiffness = Rigidity(mesh).stiffness()
    rng = np.random.default_rng(5)
    first, second = (rng.normal(size=(len(mesh.vertices_A), 3)) for _ in range(2))

    def energy(field: NDArray) -> float:
        return float(by_svd(mesh, torch.from_numpy(field)[None]))

    h = 1e-3
    mixed = [energy(h * (a * first + b * second)) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    expected = (mixed[0] - mixed[1] - mixed[2] + mixed[3]) / (4 * h * h)
    found = first.ravel() @ (stiffness @ second.ravel())
    scale = np.sqrt(first.ravel() @ (stiffness @ first.ravel()) * (second.ravel() @ (stiffness @ second.ravel())))
    assert abs(found - expected) < 1e-4 * scale


def test_stiffness_is_symmetric_with_the_six_rigid_motions_as_its_null_space(mesh: TetMesh) -> None:
    dense = Rigidity(mesh).stiffness().toarray()
    assert np.abs(dense - dense.T).max() < 1e-9 * np.abs(dense).max()
    values, vectors = np.linalg.eigh(dense)
    assert np.abs(values[:6]).max() < 1e-6 * values[-1] < values[6]
    rigid = rigid_fields(mesh).reshape(6, -1)
    left = rigid - (rigid @ vectors[:, :6]) @ vectors[:, :6].T
    assert np.abs(left).max() < 1e-4


# -- soft modes --------------------------------------------------------------------------------------------------


def rigid_fields(mesh: TetMesh) -> NDArray[np.float64]:
    """An orthonormal basis (6, V, 3) of shifts and infinitesimal rotations."""
    x = mesh.vertices_A - mesh.vertices_A.mean(axis=0)
    fields = [np.broadcast_to(axis, x.shape) for axis in np.eye(3)] + [np.cross(axis, x) for axis in np.eye(3)]
    return np.linalg.qr(np.array(fields).reshape(6, -1).T)[0].T.reshape(6, -1, 3)


def lumped(mesh: TetMesh) -> NDArray[np.float64]:
    """Share of each vertex in the mesh's weighted volume."""
    mass = np.zeros(len(mesh.vertices_A))
    np.add.at(mass, mesh.cells, (cell_volumes(mesh.vertices_A, mesh.cells) * mesh.rigidity)[:, None] / 4)
    return mass / mass.sum()


def test_modes_are_rigid_first_then_ever_stiffer(mesh: TetMesh) -> None:
    modes = soft_modes(mesh, 14).astype(np.float64)
    assert modes.shape == (14, len(mesh.vertices_A), 3)
    rigid = rigid_fields(mesh).reshape(6, -1)
    for number, mode in enumerate(modes.reshape(14, -1)):
        part = np.linalg.norm(rigid @ mode) / np.linalg.norm(mode)
        assert (part > 0.999) if number < 6 else (part < 0.9), number
    stiffness = Rigidity(mesh).stiffness()
    cost = np.array([mode.ravel() @ (stiffness @ mode.ravel()) for mode in modes])
    assert cost[:6].max() < 1e-5 * cost[6]
    assert (np.diff(cost[6:]) > -1e-4 * cost[-1]).all()


def test_modes_are_orthogonal_and_of_one_angstrom(mesh: TetMesh) -> None:
    modes = soft_modes(mesh, 14).astype(np.float64)
    gram = np.einsum("mva,nva,v->mn", modes, modes, lumped(mesh))
    assert np.abs(gram - np.eye(14)).max() < 1e-4


def test_the_same_mesh_gives_the_same_modes(mesh: TetMesh) -> None:
    assert np.array_equal(soft_modes(mesh, 10), soft_modes(mesh, 10))


def test_held_vertices_do_not_move(mesh: TetMesh) -> None:
    held = mesh.vertices_A[:, 0] < -20
    modes = soft_modes(replace(mesh, motion=np.where(held, 0, 1).astype(np.float32)), 8)
    assert not modes[:, held].any()
    assert (np.abs(modes[:, ~held]).max(axis=(1, 2)) > 0.1).all()
    cost = [mode.ravel() @ (Rigidity(mesh).stiffness() @ mode.ravel()) for mode in modes]
    assert min(cost) > 1e-3 * max(cost)  # no rigid motion of the whole is left


def test_a_small_mesh_has_as_many_modes_as_it_can(mesh_of) -> None:
    modes = soft_modes(mesh_of((1, 1, 1), 20.0), 500)
    assert len(modes) == 3 * 8 - 2 and np.isfinite(modes).all()
