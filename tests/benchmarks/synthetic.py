"""Made-up molecules and particles for timing: a ball on a mesh of random points, images of nothing but noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from flex_job.band import Band
from flex_job.ctf import CtfParameters, electron_wavelength
from flex_job.mesh import TetMesh
from flex_job.operator import VoxelDomain, voxel_domain
from flex_job.particles import ParticleStack
from flex_job.volume import Volume

__all__ = ["Scene", "ball", "ball_mesh", "ctf_table", "scene", "write_stack"]

PIXEL_A = 1.5


def ball(box: int, radius_px: float, pixel_size_A: float = PIXEL_A) -> Volume:
    """One inside, zero outside."""
    index = np.indices((box,) * 3) - box // 2
    return Volume(((index**2).sum(0) < radius_px**2).astype(np.float32), pixel_size_A)


def ball_mesh(radius_A: float, vertices: int, seed: int = 0) -> TetMesh:
    """Random points in a ball a third larger, joined to about four cells a vertex."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(vertices, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = directions * 1.3 * radius_A * rng.uniform(size=(vertices, 1)) ** (1 / 3)
    cells = Delaunay(points).simplices.astype(np.int32)
    corners = points[cells]
    volume = np.linalg.det(corners[:, 1:] - corners[:, :1])
    cells[volume < 0] = cells[volume < 0][:, [1, 0, 2, 3]]
    cells = cells[np.abs(volume) > 1e-3 * np.median(np.abs(volume))]
    ones = np.ones(len(cells), np.float32)
    return TetMesh(points, cells, ones, np.ones(len(points), np.float32), np.zeros(len(cells), np.int32))


@dataclass(frozen=True)
class Scene:
    """What an operator is called with: `values` (n,), `q` (b, V, 2), `dq` (b, k, V, 2), images of `box` pixels."""

    domain: VoxelDomain
    box: int
    values: torch.Tensor
    q: torch.Tensor
    dq: torch.Tensor

    def first(self, images: int) -> Scene:
        return Scene(self.domain, self.box, self.values, self.q[:images], self.dq[:images])

    def to(self, dtype: torch.dtype) -> Scene:
        return Scene(self.domain, self.box, self.values.to(dtype), self.q.to(dtype), self.dq.to(dtype))


def scene(box: int, radius_px: float, vertices: int, images: int, directions: int) -> Scene:
    """A ball seen from random directions, its vertices displaced by half a pixel."""
    rng = np.random.default_rng(0)
    mesh = ball_mesh(radius_px * PIXEL_A, vertices)
    domain = voxel_domain(mesh, ball(box, radius_px))
    rotations = Rotation.random(images, random_state=1).as_matrix()[:, :2] / PIXEL_A
    moved = mesh.vertices_A + 0.5 * PIXEL_A * rng.normal(size=(images, *mesh.vertices_A.shape))
    q = np.einsum("bij,bvj->bvi", rotations, moved) + box // 2
    dq = rng.normal(size=(images, directions, *q.shape[1:]))
    values = rng.normal(size=len(domain))
    return Scene(domain, box, *(torch.from_numpy(each.astype(np.float32)) for each in (values, q, dq)))


def ctf_table(n: int, seed: int = 0) -> CtfParameters:
    """300 kV, 2.7 mm, defocus between 0.8 and 2.5 um, no aberrations."""
    rng = np.random.default_rng(seed)
    zero, defocus = torch.zeros(n, dtype=torch.float64), torch.from_numpy(rng.uniform(8e3, 25e3, n))
    return CtfParameters(
        defocus_u_A=defocus,
        defocus_v_A=defocus + 200,
        defocus_angle_rad=torch.from_numpy(rng.uniform(0, math.pi, n)),
        phase_shift_rad=zero,
        bfactor_A2=zero,
        scale=torch.ones(n, dtype=torch.float64),
        optics_index=torch.zeros(n, dtype=torch.int64),
        wavelength_A=torch.tensor([electron_wavelength(300.0)], dtype=torch.float64),
        spherical_aberration_A=torch.tensor([2.7e7], dtype=torch.float64),
        amplitude_contrast=torch.tensor([0.1], dtype=torch.float64),
        magnification=torch.eye(2, dtype=torch.float64)[None],
        beam_tilt_rad=torch.zeros(1, 2, dtype=torch.float64),
        unsigned=torch.tensor([False]),
        premultiplied=torch.tensor([False]),
        even_zernike=((),),
        odd_zernike=((),),
    )


def write_stack(
    path: Path, n: int, box: int, pixel_size_A: float = PIXEL_A, *, scale: float = 1.0, seed: int = 0
) -> ParticleStack:
    """Particles of nothing but noise at random poses, cached at `path`; `scale` is the density's contrast."""
    rng = np.random.default_rng(seed)
    record = (len(Band.below(box / 2)), 2)
    with path.open("wb") as cache:
        for start in range(0, n, 1000):
            rng.standard_normal((min(1000, n - start), *record), dtype=np.float32).astype(np.float16).tofile(cache)
    rotations: NDArray[np.float64] = Rotation.random(n, random_state=seed).as_matrix()
    return ParticleStack(
        path=path,
        box=box,
        pixel_size_A=pixel_size_A,
        projections=(rotations[:, :2] / pixel_size_A).astype(np.float32),
        origins_px=rng.normal(size=(n, 2)).astype(np.float32),
        halves=(1 + np.arange(n) % 2).astype(np.int8),
        optics_index=np.zeros(n, np.int32),
        pixel_sizes_A=np.full(n, pixel_size_A),
        ctf=ctf_table(n, seed),
        noise=np.ones((1, box // 2 + 1), np.float32),
        scale=np.full(n, scale, np.float32),
    )
