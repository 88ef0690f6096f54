"""Where fewer bits do no harm, told by Fourier shell correlation. Run by `make bench`; about two minutes.

1,000 simulated images of 64 px of the antibody, bending, at a signal-to-noise ratio of 0.1, made in float64. The map is
solved for through the known motion, once in float32 and once with each of these rounded: the particles' coefficients as
they lie in the cache; the factors of the GPU's matrix products (spline weights, values, images); the images between
operator and Fourier transform. A variant is harmless where its map agrees with the float32 map far better than either
agrees with the truth, and its agreement with the truth is the same. float8 (4 bits) is there to show that harm is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from clock import cores, use_threads
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from synthetic import ctf_table

from flex_job.band import Band
from flex_job.ctf import ctf_at
from flex_job.elastic import soft_modes
from flex_job.events import Events
from flex_job.fsc import fsc
from flex_job.imaging import ImageModel
from flex_job.mesh import build_mesh
from flex_job.operator import MASK_LEVEL, Operator, VoxelDomain, make_operator, voxel_domain
from flex_job.particles import Batch
from flex_job.simulation.atoms import default_sigma_A, load_antibody
from flex_job.simulation.maps import consensus_maps, population
from flex_job.simulation.motion import antibody_motion
from flex_job.solver import LeastSquares, solve
from job_specs.parameters import MeshParameters

PARTICLES, BOX, PIXEL_A, SNR, BEND_A = 1000, 64, 4.0, 0.1, 6.0
ITERATIONS, BATCH = 4, 100

Round = Callable[[torch.Tensor], torch.Tensor]
BITS = {"float32": 24, "tf32": 11, "bfloat16": 8, "float8": 4}  # of the mantissa, the leading one included
STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


def rounded_to(name: str) -> Round:
    """Round to a storage format and back. Their ranges are narrow: numbers are first scaled by a power of two."""
    dtype = STORED[name]

    def round_real(x: torch.Tensor) -> torch.Tensor:
        scale = 2.0 ** math.ceil(math.log2(float(x.abs().max()) + 1e-30)) / 256
        return (x / scale).to(dtype).to(x.dtype) * scale

    def round_any(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(round_real(torch.view_as_real(x))) if x.is_complex() else round_real(x)

    return round_any


# -- the operator with rounded factors --------------------------------------------------------------------------------


@numba.njit(inline="always")
def _cut(x, drop):
    """float32 with its last `drop` bits rounded away."""
    bits = np.float32(x).view(np.int32)
    if drop:
        bits = (bits + (np.int32(1) << np.int32(drop - 1))) & ~((np.int32(1) << np.int32(drop)) - np.int32(1))
    return np.int32(bits).view(np.float32)


@numba.njit(inline="always")
def _weight(t, k):
    """Cubic B-spline weight of pixel floor(p) - 1 + k, t = p - floor(p)."""
    d = abs(t + 1 - k)
    return (4 - 6 * d * d + 3 * d * d * d) / 6 if d < 1 else (2 - d) ** 3 / 6


@numba.njit(inline="always")
def _position(q, corners, shares):
    x, y = np.float32(0), np.float32(0)
    for k in range(4):
        x += shares[k] * q[corners[k], 0]
        y += shares[k] * q[corners[k], 1]
    return x, y


@numba.njit(parallel=True)
def _project(values, q, corners, shares, images, drop):
    box = images.shape[1]
    for i in numba.prange(len(q)):
        for v in range(len(values)):
            px, py = _position(q[i], corners[v], shares[v])
            if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                continue
            x, y = int(px), int(py)
            for j in range(4):
                h = _cut(_weight(py - y, j), drop)
                for k in range(4):
                    images[i, y - 1 + j, x - 1 + k] += h * _cut(_weight(px - x, k) * values[v], drop)


@numba.njit(parallel=True)
def _adjoint(images, q, corners, shares, out, drop):
    box = images.shape[1]
    for t in numba.prange(len(out)):
        for i in range(t, len(q), len(out)):
            for v in range(len(corners)):
                px, py = _position(q[i], corners[v], shares[v])
                if not (px >= 1 and py >= 1 and px < box - 2 and py < box - 2):
                    continue
                x, y = int(px), int(py)
                for k in range(4):
                    column = np.float32(0)
                    for j in range(4):
                        column += _cut(_weight(py - y, j), drop) * _cut(images[i, y - 1 + j, x - 1 + k], drop)
                    out[t, v] += column * _weight(px - x, k)


class RoundedOperator:
    """As the GPU's kernels compute: the factors of every product rounded, sums and positions in float32."""

    device = torch.device("cpu")

    def __init__(self, domain: VoxelDomain, bits: int) -> None:
        self.domain, self.drop = domain, 24 - bits
        vertices, weights = domain.weights()
        self.corners, self.shares = vertices, weights.astype(np.float32)

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        images = np.zeros((len(q), box, box), np.float32)
        _project(values.numpy(), q.numpy(), self.corners, self.shares, images, self.drop)
        return torch.from_numpy(images)

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        out = np.zeros((cores(), len(self.domain)), np.float32)
        _adjoint(images.contiguous().numpy(), q.numpy(), self.corners, self.shares, out, self.drop)
        return torch.from_numpy(out.sum(axis=0)), None

    def derivative(
        self, values: torch.Tensor, q: torch.Tensor, dq: torch.Tensor, box: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError("the map's solver takes no derivatives")


class RoundedImages:
    """An operator whose images go to and come from the Fourier transform rounded."""

    def __init__(self, operator: Operator, to: Round) -> None:
        self.operator, self.to = operator, to
        self.domain, self.device = operator.domain, operator.device
        self.derivative = operator.derivative

    def project(self, values: torch.Tensor, q: torch.Tensor, box: int) -> torch.Tensor:
        return self.to(self.operator.project(values, q, box))

    def adjoint(
        self, images: torch.Tensor, q: torch.Tensor, values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.operator.adjoint(self.to(images), q, values)


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Particles in memory, as `LeastSquares` asks a stack for them, with what is known of them."""

    whole: Batch
    band: Band
    domain: VoxelDomain
    truth: NDArray[np.float32]
    vertices: torch.Tensor  # (n, V, 3) angstroms, moved
    box: int = BOX
    pixel_size_A: float = PIXEL_A

    def __len__(self) -> int:
        return len(self.whole)

    def batch(self, index: NDArray[np.int64], band: Band) -> Batch:
        w = self.whole
        return Batch(index, w.data[index], w.transfer[index], w.projections[index], w.origins_px[index])

    def batches(self, indices: Iterable[NDArray[np.int64]], band: Band) -> Iterator[Batch]:
        return (self.batch(index, band) for index in indices)

    def model(self, operator: Operator) -> ImageModel:
        return ImageModel(operator, BOX, self.band, stack_box=BOX, stack_pixel_size_A=PIXEL_A, oversampling=2)

    def positions(self, model: ImageModel) -> Callable[[Batch], torch.Tensor]:
        return lambda batch: model.positions(batch, self.vertices[torch.from_numpy(batch.index)])


def simulate() -> Data:
    rng = np.random.default_rng(0)
    conformations = antibody_motion(load_antibody(default_sigma_A(PIXEL_A)), "none")
    maps = consensus_maps(conformations, population(conformations), BOX, PIXEL_A, 2.5 * PIXEL_A)
    mesh = build_mesh(maps.filtered, maps.mask, MeshParameters(), None, None, Events(message=lambda line: None))
    domain = voxel_domain(mesh, maps.mask, MASK_LEVEL)
    bend = soft_modes(mesh, 7)[6]  # the first that is not a rigid motion
    latents = rng.uniform(-1, 1, PARTICLES)
    vertices = mesh.vertices_A[None] + BEND_A * latents[:, None, None] * bend
    band, index = Band.below(BOX / 2), np.arange(PARTICLES)
    transfer = ctf_at(ctf_table(PARTICLES), index, band.ky, band.kx, np.full(PARTICLES, BOX * PIXEL_A))
    projections = torch.from_numpy(Rotation.random(PARTICLES, random_state=0).as_matrix()[:, :2] / PIXEL_A)
    data = torch.zeros(PARTICLES, len(band), dtype=torch.complex64)
    whole = Batch(index, data, transfer, projections.float(), torch.zeros(PARTICLES, 2))
    made = Data(whole, band, domain, maps.exact.data, torch.from_numpy(vertices.astype(np.float32)))
    values = torch.from_numpy(domain.gather(maps.exact.data)).double()
    model = made.model(make_operator(domain))
    for start in range(0, PARTICLES, BATCH):
        part = made.batch(index[start : start + BATCH], band)
        q = made.positions(model)(part)
        data[start : start + BATCH] = part.transfer * model.transform(values, q.double()).to(torch.complex64)
    size = math.sqrt(SNR / float(torch.view_as_real(data).square().mean()))
    whole.transfer.mul_(size)
    noise = torch.from_numpy(rng.normal(size=(PARTICLES, len(band), 2)).astype(np.float32))
    data.mul_(size).add_(torch.view_as_complex(noise))
    return made


def solved(data: Data, operator: Operator, coefficients: Round = lambda x: x) -> NDArray[np.float32]:
    """The map from all particles."""
    exact = data.whole
    data.whole = replace(exact, data=coefficients(exact.data))
    model = data.model(operator)
    problem = LeastSquares(data, [np.arange(PARTICLES)], model, [data.positions(model)], batch_size=BATCH)  # type: ignore[arg-type]
    state = solve(problem, max_iterations=ITERATIONS)
    data.whole = exact
    return problem.density(state.values)[0]


def main() -> None:
    use_threads(cores())
    data = simulate()
    domain, exact = data.domain, make_operator(data.domain)
    single = solved(data, exact)
    variants: dict[str, Callable[[], NDArray[np.float32]]] = {}
    for name in STORED:
        to = rounded_to(name)
        variants[f"cache in {name}"] = lambda to=to: solved(data, exact, to)  # type: ignore[misc]
        variants[f"images in {name}"] = lambda to=to: solved(data, RoundedImages(exact, to))  # type: ignore[misc]
    for name, bits in BITS.items():
        variants[f"products in {name}"] = lambda bits=bits: solved(data, RoundedOperator(domain, bits))  # type: ignore[misc]
    with_truth = fsc(single, data.truth)
    fifths = np.array_split(np.arange(1, BOX // 2), 5)
    truth = ", ".join(f"{with_truth[shells].mean():.4f}" for shells in fifths)
    print(f"{PARTICLES} particles of {BOX} px, {len(domain)} voxels, signal-to-noise {SNR}")
    print(f"float32 map, FSC with the truth: {truth} (fifths of Nyquist)")
    print(f"\n{'':22}{'1 - FSC with the float32 map':52}{'FSC with the truth, change'}")
    print(f"{'':22}{'fifths of Nyquist':52}{'mean':>12}{'worst shell':>14}")
    for name in sorted(variants):
        found = variants[name]()
        apart, change = 1 - fsc(found, single), (fsc(found, data.truth) - with_truth)[1 : BOX // 2]
        row = "".join(f"{apart[shells].mean():10.1e}" for shells in fifths)
        print(f"{name:22}{row:52}{change.mean():+12.5f}{change[np.abs(change).argmax()]:+14.5f}", flush=True)


if __name__ == "__main__":
    main()
