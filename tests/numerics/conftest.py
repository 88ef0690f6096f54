"""A small synthetic world: a phantom of Gaussians, a mesh of equal tetrahedra, a particle stack written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.ctf import ctf, ctf_parameters
from flex_job.flow import FlowGenerator
from flex_job.imaging import ImageModel
from flex_job.mesh import TetMesh
from flex_job.operator import VoxelDomain, make_operator, voxel_domain
from flex_job.particles import Batch, ParticleStack
from flex_job.solver import moved_vertices
from flex_job.volume import Volume

PIXEL_A = 3.0

# xyz and weights of the phantom's Gaussians in fractions of the box: lopsided, so that no rotation or mirror fits.
CENTRES = np.array(
    [[-0.22, -0.10, 0.06], [-0.11, 0.08, -0.10], [0.0, -0.06, 0.02], [0.10, 0.06, 0.12], [0.22, 0.10, -0.08]]
)
WEIGHTS = np.array([1.0, 1.4, 0.8, 1.2, 1.0])


def box_mesh(counts: tuple[int, int, int], size_A: NDArray[np.floating] | float) -> TetMesh:
    """A centred cuboid of edges `size_A` cut into `counts` (x, y, z) cuboids of six tetrahedra each (Kuhn 1960)."""
    grids = [np.linspace(-0.5, 0.5, count + 1) for count in counts]
    unit = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, 3)
    number = np.arange(len(unit)).reshape([count + 1 for count in counts])
    cells = []
    for order in permutations(range(3)):
        corner = np.zeros(3, dtype=int)
        path = [corner.copy()]
        for axis in order:
            corner[axis] += 1
            path.append(corner.copy())
        tet = [number[tuple(slice(c, c + n) for c, n in zip(p, counts, strict=True))].ravel() for p in path]
        if np.linalg.det(np.diff(path, axis=0)) < 0:  # diff of a path has the determinant of edges from its start
            tet[2], tet[3] = tet[3], tet[2]
        cells.append(np.stack(tet, axis=1))
    return TetMesh.plain(unit * size_A, np.concatenate(cells).astype(np.int32))


def phantom(box: int, sigma_px: float = 1.2) -> Volume:
    """The Gaussians sampled on a grid; density summed over the voxels is the sum of WEIGHTS."""
    z, y, x = np.indices((box,) * 3) - box // 2
    grid = np.stack([x, y, z], axis=-1)
    data = np.zeros((box,) * 3)
    for centre, weight in zip(CENTRES * box, WEIGHTS, strict=True):
        squared = ((grid - centre) ** 2).sum(-1)
        data += weight * np.exp(-squared / (2 * sigma_px**2)) / (2 * np.pi * sigma_px**2) ** 1.5
    return Volume(data.astype(np.float32), PIXEL_A)


def around(density: Volume, part: float = 1e-3) -> Volume:
    """The voxels above `part` of the maximum."""
    return Volume((density.data > part * density.data.max()).astype(np.float32), density.pixel_size_A)


def bending_fields(mesh: TetMesh, size_A: float) -> NDArray[np.float32]:
    """Two smooth displacement fields (2, V, 3), at most `size_A`: a bend of the long axis x, and a twist about it."""
    x, y, z = mesh.vertices_A.T / np.abs(mesh.vertices_A[:, 0]).max()
    bend = np.stack([-2 * x * y, x**2, 0 * x], axis=1)
    twist = np.stack([0 * x, -x * z, x * y], axis=1) * 2
    fields = np.stack([bend, twist])
    fields *= size_A / np.linalg.norm(fields, axis=2).max(axis=1)[:, None, None]
    return fields.astype(np.float32)


@dataclass(frozen=True)
class World:
    """Particles of a phantom and all that made them; `values` and `domain` are the phantom on the stack's grid."""

    stack: ParticleStack
    mesh: TetMesh
    density: Volume
    support: Volume
    domain: VoxelDomain
    model: ImageModel
    values: torch.Tensor
    flow: FlowGenerator
    fields: NDArray[np.float32]
    latents: NDArray[np.float32]

    @property
    def vertices(self) -> torch.Tensor:
        return torch.from_numpy(self.mesh.vertices_A.astype(np.float32))

    def positions(self, latents: NDArray[np.float32] | None) -> Callable[[Batch], torch.Tensor]:
        """A callback for the solver: vertices through the flow at `latents`, or at rest."""
        return moved_vertices(self.model, self.vertices, self.flow, latents)

    def lower(self, fraction: float) -> ImageModel:
        """The model in a lower band, a fraction of Nyquist, on the same grid."""
        stack, model = self.stack, self.model
        return ImageModel(
            model.operator,
            model.box,
            stack.band(fraction),
            stack_box=stack.box,
            stack_pixel_size_A=stack.pixel_size_A,
            oversampling=model.oversampling,
        )


def consensus_of(count: int, box: int, seed: int, **optics: object) -> Consensus:
    """Poses, shifts, defocuses and half-sets drawn at random; no images."""
    rng = np.random.default_rng(seed)
    group = OpticsGroup("one", box, PIXEL_A, 300.0, 2.7, 0.1)
    defocus = rng.uniform(4000, 12000, count)
    zero = np.zeros(count)
    return Consensus(
        rotations=Rotation.random(count, random_state=seed).as_matrix(),
        origins_A=rng.uniform(-1.5, 1.5, (count, 2)) * PIXEL_A,
        halves=(1 + np.arange(count) % 2).astype(np.int8),
        optics_index=np.zeros(count, np.int32),
        optics=(replace(group, **optics),),  # type: ignore[arg-type]
        defocus_u_A=defocus + 200,
        defocus_v_A=defocus - 200,
        defocus_angle_rad=rng.uniform(0, np.pi, count),
        phase_shift_rad=zero,
        ctf_bfactor_A2=zero,
        ctf_scale=np.ones(count),
        stack_paths=(),
        stack_index=np.zeros(count, np.int32),
        image_index=np.arange(count),
        map=Volume(np.zeros((box,) * 3, np.float32), PIXEL_A),
    )


def build_world(
    folder: Path,
    *,
    count: int = 60,
    box: int = 24,
    latent_dims: int = 1,
    motion_A: float = 6.0,
    scale: float = 100.0,
    noise: float = 0.0,
    signal: float = 1.0,
    oversampling: int = 1,
    sigma_px: float = 1.2,
    cells: tuple[int, int, int] = (4, 2, 2),
    seed: int = 0,
) -> World:
    """Images made by the model itself, so that what is left unexplained is the code's and not the phantom's.

    `motion_A` is the displacement at the ends at a latent of 1; `scale` the contrast in units of the noise;
    `noise` its standard deviation (1 is what the stack promises); `signal` 0 leaves noise only.
    """
    consensus = consensus_of(count, box, seed)
    density = phantom(box, sigma_px)
    support = around(density)
    mesh = box_mesh(cells, np.array([0.75, 0.5, 0.5]) * box * PIXEL_A)
    fields = bending_fields(mesh, motion_A)[:latent_dims]
    torch.manual_seed(seed)
    flow = FlowGenerator(latent_dims, 2, 32, torch.from_numpy(mesh.motion))
    rng = np.random.default_rng(seed + 1)
    latents = rng.normal(size=(count, latent_dims)).astype(np.float32)
    flow.start_straight(torch.from_numpy(fields))
    torch.nn.init.normal_(flow.last.weight, std=2e-4 * motion_A)  # and a little that bends
    domain = voxel_domain(mesh, support)
    values = torch.from_numpy(domain.gather(density.data))
    shells = box // 2 + 1
    stack = ParticleStack(
        path=folder / "stack.f16",
        box=box,
        pixel_size_A=PIXEL_A,
        projections=(consensus.rotations[:, :2] / PIXEL_A).astype(np.float32),
        origins_px=(consensus.origins_A / PIXEL_A).astype(np.float32),
        halves=consensus.halves,
        optics_index=consensus.optics_index,
        pixel_sizes_A=np.full(count, PIXEL_A),
        ctf=ctf_parameters(consensus),
        noise=(1 + 0.5 * np.exp(-np.arange(shells) / 4))[None].astype(np.float32),
        scale=(scale * rng.uniform(0.8, 1.2, count)).astype(np.float32),
    )
    band = stack.band()
    model = ImageModel(
        make_operator(domain), box, band, stack_box=box, stack_pixel_size_A=PIXEL_A, oversampling=oversampling
    )
    world = World(stack, mesh, density, support, domain, model, values, flow, fields, latents)
    everyone = np.arange(count)
    poses = Batch(
        index=everyone,
        data=torch.zeros(0),
        transfer=torch.zeros(0),
        projections=torch.from_numpy(stack.projections),
        origins_px=torch.from_numpy(stack.origins_px),
    )
    images = model.transform(values, world.positions(latents)(poses))
    # What the cache and the batches are to agree on is written out here on the half plane, by other code than theirs.
    transfer = band.pack(ctf(stack.ctf, everyone, box, PIXEL_A)) / 2**0.5
    transfer *= torch.from_numpy(stack.scale)[:, None] / torch.from_numpy(stack.noise[0])[band.shells]
    # White noise made in real space has the symmetry of a real image's transform; E |coefficient|^2 = 1.
    white = torch.from_numpy(rng.normal(size=(count, box, box)).astype(np.float32))
    data = signal * images * transfer + noise * band.pack(torch.fft.rfft2(white, norm="ortho"))
    torch.view_as_real(data).numpy().astype(np.float16).tofile(stack.path)
    return world


@pytest.fixture(scope="session")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """`world_of(count=..., ...)` builds a World (see build_world); the same arguments give the same one."""
    built: dict[str, World] = {}

    def build(**arguments: object) -> World:
        key = repr(sorted(arguments.items()))
        if key not in built:
            built[key] = build_world(tmp_path_factory.mktemp("world"), **arguments)  # type: ignore[arg-type]
        return built[key]

    return build


@pytest.fixture(scope="session")
def mesh_of() -> Callable[..., TetMesh]:
    """`mesh_of(counts, size_A)`: see box_mesh."""
    return box_mesh


@pytest.fixture(scope="session")
def phantom_of() -> Callable[..., Volume]:
    """`phantom_of(box, sigma_px)`: see phantom."""
    return phantom
