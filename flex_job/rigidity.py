"""The rigidity prior (after the paper's equations 4 and 5): deviation of each cell's singular values from one."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from flex_job.mesh import TetMesh, cell_gradients
from flex_job.rigidity_cpu import CompiledRigidity

__all__ = ["STRAIN_UNIT", "YIELD", "Rigidity", "orthogonal_factor"]


def orthogonal_factor(a: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The orthogonal matrix nearest to each 3 x 3 matrix (..., 3, 3): the polar factor, by scaled Newton steps.

    Newton's iteration R <- (R + R^-T) / 2 (Higham 1986) with Frobenius scaling converges quadratically; near a
    rotation, where meshes live, three steps reach float32. Quickest where the matrices' entries lie apart in memory,
    as `Rigidity.deformation` has them.
    """
    r = a.movedim((-2, -1), (0, 1)).reshape(9, *a.shape[:-2])
    cofactor = torch.empty_like(r)
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    for _ in range(iterations):
        for row, (after, last) in enumerate(((1, 2), (2, 0), (0, 1))):
            for column, (right, far) in enumerate(((1, 2), (2, 0), (0, 1))):
                entry = torch.mul(r[3 * after + right], r[3 * last + far], out=cofactor[3 * row + column])
                entry.addcmul_(r[3 * after + far], r[3 * last + right], value=-1)
        determinant = (r[:3] * cofactor[:3]).sum(0)
        inverse = cofactor / torch.where(determinant.abs() < tiny, tiny, determinant)
        norm = (inverse.square().sum(0) / r.square().sum(0)) ** 0.25
        r = (0.5 * norm * r).addcmul_(inverse, 0.5 / norm)
    return r.reshape(3, 3, *a.shape[:-2]).movedim((0, 1), (-2, -1))


STRAIN_UNIT = 200.0
"""nats per unit of mean squared strain: with it a rigidity of 1 asks half a nat for a strain of 5 % everywhere."""


YIELD = 0.1
"""Strain at which a cell begins to give way: a strain of many times that costs hardly more. Hinges are a few cells that
strain by half and more, between parts that do not strain at all. Squares would charge them so much that the strain is
spread, and the parts bend."""


class Rigidity:
    """Rigidity loss: the weighted mean over cells of y log(1 + s / y), where s = sum_l (sigma_l(A_j) - 1)^2 of
    A_j = I + grad u in cell j, and y = YIELD^2. The paper's is the limit of a large YIELD: s itself.

    The paper's equation 4 has the sum over cells, so that its strength changes with the fineness of the mesh; the
    mean, in units of STRAIN_UNIT, keeps one value of lambda comparable between meshes and molecules.
    """

    def __init__(self, mesh: TetMesh, device: torch.device | str = "cpu") -> None:
        self.cells = torch.from_numpy(mesh.cells.astype(np.int64)).to(device)
        self.gradients = torch.from_numpy(cell_gradients(mesh).astype(np.float32)).to(device)
        weights = mesh.rigidity.astype(np.float64)
        self.weights = torch.from_numpy((STRAIN_UNIT * weights / weights.sum()).astype(np.float32)).to(device)
        self.n_vertices = len(mesh.vertices_A)

    def deformation(self, u: torch.Tensor) -> torch.Tensor:
        """A = I + grad u (b, T, 3, 3) of displacements u (b, V, 3); the nine entries lie apart in memory."""
        axes = u.permute(2, 0, 1)  # (3, b, V)
        slopes = self.gradients.to(u).permute(1, 2, 0)  # (4, 3, T)
        eye = torch.eye(3, dtype=u.dtype, device=u.device)[:, :, None, None]
        total = eye.expand(-1, -1, len(u), len(self.cells))
        for k in range(4):
            total = total + axes[:, None, :, self.cells[:, k]] * slopes[k][None, :, None]
        return total.permute(2, 3, 0, 1)

    def energy(self, u: torch.Tensor) -> torch.Tensor:
        """Mean over the batch of the rigidity loss.

        s = |A - R|^2 with R the polar factor of A. R minimises that distance, so it counts as
        a constant in the derivative, and no singular value decomposition is needed.
        """
        if u.device.type == "cpu":
            return CompiledRigidity.apply(u, self.cells, self.gradients, self.weights, YIELD**2)
        return self.energy_by_torch(u)

    def energy_by_torch(self, u: torch.Tensor) -> torch.Tensor:
        """The same on any device, differentiated by torch."""
        a = self.deformation(u)
        with torch.no_grad():
            r = orthogonal_factor(a)
        strain = (a - r).square().sum((-1, -2))
        return (YIELD**2 * torch.log1p(strain / YIELD**2) * self.weights).sum(-1).mean()

    def stiffness(self) -> scipy.sparse.csr_matrix:
        """Hessian of the energy at rest (3V, 3V): that of linear elasticity, sum_j w_j |sym grad u|^2."""
        cells, g = self.cells.numpy(), self.gradients.double().numpy()
        eye = np.eye(3)
        # d/du_ka d/du_lb of |sym grad u|^2 = g_k . g_l delta_ab + g_k[b] g_l[a]
        block: NDArray[np.float64] = np.einsum("tkc,tlc,ab->tkalb", g, g, eye) + np.einsum("tkb,tla->tkalb", g, g)
        block *= self.weights.double().numpy()[:, None, None, None, None]
        dof = 3 * cells[:, :, None] + np.arange(3)
        rows = np.broadcast_to(dof[:, :, :, None, None], block.shape).ravel()
        columns = np.broadcast_to(dof[:, None, None, :, :], block.shape).ravel()
        size = 3 * self.n_vertices
        return scipy.sparse.csr_matrix((block.ravel(), (rows, columns)), shape=(size, size))
