"""The softest modes of the mesh: a small basis of smooth motions, from the rigidity prior's own Hessian."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from flex_job.mesh import TetMesh
from flex_job.mesh.tetmesh import vertex_weights
from flex_job.rigidity import Rigidity

__all__ = ["soft_modes"]


def soft_modes(mesh: TetMesh, count: int) -> NDArray[np.float32]:
    """Displacement fields (count, V, 3), rigid motions of the whole first, then ever stiffer bends; each of 1 A rms.

    Generalised eigenvectors of the stiffness against the cells' volume lumped on the vertices. Vertices that must
    not move are held.
    """
    stiffness = Rigidity(mesh).stiffness()
    lumped = vertex_weights(mesh)
    free = np.repeat(mesh.motion > 0.5, 3)
    count = min(count, int(free.sum()) - 2)
    mass = scipy.sparse.diags(np.repeat(np.maximum(lumped, 1e-9), 3)[free]).tocsc()
    scale = stiffness.diagonal().mean() / mass.diagonal().mean()
    start = np.random.default_rng(0).normal(size=int(free.sum()))
    _, vectors = eigsh(stiffness[free][:, free].tocsc(), k=count, M=mass, sigma=-1e-5 * scale, which="LM", v0=start)
    flat = np.zeros((count, 3 * len(mesh.vertices_A)))
    flat[:, free] = vectors.T
    modes = flat.reshape(count, -1, 3)
    size = np.sqrt(np.einsum("mva,v->m", modes**2, lumped))
    return (modes / size[:, None, None]).astype(np.float32)
