"""The rigidity prior (paper, equations 4 and 5): squared deviation of each cell's singular values from one."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray

from flex_job.mesh import TetMesh, cell_gradients

__all__ = ["Rigidity", "orthogonal_factor"]


def orthogonal_factor(a: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The orthogonal matrix nearest to each 3 x 3 matrix (..., 3, 3): the polar factor, by scaled Newton steps.

    Newton's iteration R <- (R + R^-T) / 2 (Higham 1986) with Frobenius scaling converges quadratically; near a
    rotation, where meshes live, three steps reach float32.
    """
    r = a
    for _ in range(iterations):
        x, y, z = r.unbind(-1)
        cofactor = torch.stack([torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)], dim=-1)
        determinant = (x * cofactor[..., 0]).sum(-1)[..., None, None]
        tiny = torch.finfo(a.dtype).tiny ** 0.5
        inverse = cofactor / torch.where(determinant.abs() < tiny, tiny, determinant)
        norm = (inverse.square().sum((-1, -2), keepdim=True) / r.square().sum((-1, -2), keepdim=True)) ** 0.25
        r = 0.5 * (norm * r + inverse / norm)
    return r


STRAIN_UNIT = 200.0
"""nats per unit of mean squared strain: with it a rigidity of 1 asks half a nat for a strain of 5 % everywhere."""


class Rigidity:
    """Rigidity loss: the weighted mean over cells of sum_l (sigma_l(A_j) - 1)^2, A_j = I + grad u in cell j.

    The paper's equation 4 has the sum over cells, so that its strength changes with the fineness of the mesh; the
    mean, in units of STRAIN_UNIT, keeps one value of lambda comparable between meshes and molecules.
    """

    def __init__(self, mesh: TetMesh) -> None:
        self.cells = torch.from_numpy(mesh.cells.astype(np.int64))
        self.gradients = torch.from_numpy(cell_gradients(mesh).astype(np.float32))
        weights = mesh.rigidity.astype(np.float64)
        self.weights = torch.from_numpy((STRAIN_UNIT * weights / weights.sum()).astype(np.float32))
        self.n_vertices = len(mesh.vertices_A)

    def deformation(self, u: torch.Tensor) -> torch.Tensor:
        """A = I + grad u (b, T, 3, 3) of displacements u (b, V, 3)."""
        gradient = torch.einsum("btka,tkc->btac", u[:, self.cells], self.gradients.to(u))
        return gradient + torch.eye(3, dtype=u.dtype)

    def energy(self, u: torch.Tensor) -> torch.Tensor:
        """Mean over the batch of the rigidity loss.

        sum_l (sigma_l - 1)^2 = |A - R|^2 with R the polar factor of A. R minimises that distance, so it counts as
        a constant in the derivative, and no singular value decomposition is needed.
        """
        a = self.deformation(u)
        with torch.no_grad():
            r = orthogonal_factor(a)
        return ((a - r).square().sum((-1, -2)) * self.weights).sum(-1).mean()

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
