"""How long whole jobs should take on GPUs: counted work times assumed rates. Nothing here is measured.

The work is counted from this code's own schedule: voxel visits by kernel, transforms, coefficients, bytes. Rates come
from data sheets and an assumed efficiency, until measured ones replace them:

    python tests/benchmarks/projection.py --ns forward=0.05 --ns to_map=0.05 --ns to_both=0.1 --ns slope=0.06
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from math import pi

from flex_job.canonical_map import ITERATIONS
from flex_job.levels import band_limit, march_box
from flex_job.linear_start import MODES, SAMPLE
from flex_job.memory import MOST_PARTICLES, MOST_PIXELS
from job_specs.parameters import ReconstructParameters, TrainParameters

# -- rates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Peaks from NVIDIA's data sheets (dense, without sparsity); `atomics` is an assumption, no data sheet has it."""

    name: str
    fp32: float  # FLOP/s, an FMA counted as two
    tf32: float  # FLOP/s of the tensor cores
    memory: float  # bytes/s
    host: float  # bytes/s to the device, one direction
    atomics: float  # float32 additions per second that the second-level cache takes


DEVICES = {
    "A100": Device("A100 SXM 80 GB", 19.5e12, 156e12, 2.039e12, 32e9, 0.3e12),
    "H100": Device("H100 SXM 80 GB", 67e12, 494.7e12, 3.35e12, 64e9, 0.5e12),
}


@dataclass(frozen=True)
class Cost:
    """Of one voxel in one image: FP32 instructions, tensor-core FLOPs, atomic additions, bytes read."""

    instructions: float
    tensor: float
    atomics: float
    read: float


# Instructions are those of the kernels compiled for sm_90 (float32), of one warp for one block of BLOCK voxels in one
# image: as many per voxel and lane. Patches are of 16 x 16 pixels; a product in float32 is three in tf32, each of
# 2 x 256 FLOPs a voxel.
BLOCK, PATCH, PRODUCT = 32, 256, 3 * 2 * 256
KERNELS = {
    "forward": Cost(551, PRODUCT, PATCH, 32),
    "to_map": Cost(601, PRODUCT, 0, 32 + 4 * PATCH),
    "to_both": Cost(1310, 2.5 * PRODUCT, 16, 32 + 4 * PATCH),
    "derivative": Cost(756, PRODUCT, PATCH, 32),  # the images that come with it
    "slope": Cost(280, 2 * PRODUCT, PATCH, 32),  # of one direction
}
KERNEL_EFFICIENCY = 1 / 3  # of the tightest of the limits above
MEMORY_EFFICIENCY = 1 / 2  # of transforms and of elementwise work
TRANSFORM_BYTES = 32  # moved per pixel: zeroed, drawn, transformed in two passes, packed
CTF_BYTES = 120  # moved per coefficient: about fifteen elementwise steps
STEP_SECONDS = 5e-3  # a minibatch's launches and Python, not hidden by computing
PREPARE_NS = 150  # per raw pixel and core: read, transform, whiten, cache (measured on a CPU, docs/performance.md)


def limits(device: Device, kernel: str) -> dict[str, float]:
    """Least seconds per voxel by what limits it."""
    cost = KERNELS[kernel]
    return {
        "instructions": 2 * cost.instructions / device.fp32,
        "tensor cores": cost.tensor / device.tf32,
        "atomics": cost.atomics / BLOCK / device.atomics,
        "memory": cost.read / BLOCK / device.memory,
    }


def visit_seconds(device: Device, kernel: str) -> float:
    """What is assumed until it is measured."""
    return max(limits(device, kernel).values()) / KERNEL_EFFICIENCY


# -- work -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """`mask` is the share of the box's voxels that carry density."""

    name: str
    particles: int
    training_box: int
    box: int
    latents: int
    mask: float
    iterations: int = 10  # of the solver per half-map


@dataclass(frozen=True)
class Machine:
    device: Device
    devices: int = 1
    cores: int = 32
    disk: float = 3e9  # bytes/s, a local NVMe disk
    memory: float = 512e9  # bytes of the host that can hold the cache of particles


def coefficients(limit: float) -> float:
    return pi / 2 * limit**2


class Work:
    """Counts: voxel visits by kernel, pixels transformed, coefficients read and given a CTF, minibatches."""

    def __init__(self, data: DataSet, oversampling: int, batch: int, *, shared: bool) -> None:
        """`shared`: a minibatch is spread over the devices, so that more of them do not make fewer steps."""
        self.data, self.oversampling, self.batch, self.shared = data, oversampling, batch, shared
        self.visits: defaultdict[str, float] = defaultdict(float)
        self.pixels = self.coefficients = self.steps = 0.0

    def draw(self, kernel: str, box: int, particles: int | None = None, directions: int = 0) -> None:
        n, voxels = particles or self.data.particles, self.data.mask * box**3
        self.visits["derivative" if directions else kernel] += n * voxels
        self.visits["slope"] += n * voxels * directions
        self.pixels += n * (1 + directions) * (box * self.oversampling) ** 2

    def read(self, limit: float, particles: int | None = None) -> None:
        n = particles or self.data.particles
        self.coefficients += n * coefficients(limit)
        self.steps += n / self.batch

    def least_squares(self, box: int, limit: float, iterations: int) -> None:
        """`solve` from zero: the gradient, then forward and adjoint per iteration."""
        for number in range(iterations + 1):
            self.read(limit)
            self.draw("to_map", box)
            if number:
                self.draw("forward", box)


def training(data: DataSet, p: TrainParameters) -> Work:
    """`Trainer` with a linear start, as `train` runs it."""
    work, full = Work(data, 1, p.batch, shared=True), data.training_box
    low = march_box(full, p.band_start)
    work.read(p.band_start * full / 2, SAMPLE)
    work.draw("forward", low, SAMPLE, MODES + 6)
    work.read(p.band_start * full / 2)
    work.draw("forward", low, None, data.latents)
    for epoch in range(p.epochs + 1):  # one more for the last visits
        last = epoch == p.epochs
        band = p.band_end if last else band_limit(p, epoch)
        box = march_box(full, band)
        work.read(band * full / 2)
        if epoch >= p.fixed_latent_epochs:
            work.draw("forward", box, None, data.latents)
            if band > 1.2 * p.band_start:
                work.draw("forward", low, None, data.latents)
        if last:
            work.draw("forward", box, None, data.latents)
        else:
            work.draw("forward", box)
            work.draw("to_both", box)
        due = epoch + 1 - p.fixed_latent_epochs
        if last or (p.map_every and due >= 0 and due % p.map_every == 0 and epoch + 1 < p.epochs):
            work.least_squares(box, band * full / 2, ITERATIONS)
    return work


def half_maps(data: DataSet, p: ReconstructParameters) -> Work:
    """Both halves once, rigid or flexible."""
    batch = min(MOST_PARTICLES["cuda"], MOST_PIXELS["cuda"] // (data.box * p.oversampling) ** 2)
    work = Work(data, p.oversampling, batch, shared=False)
    work.least_squares(data.box, data.box / 2, data.iterations)
    return work


# -- time -------------------------------------------------------------------------------------------------------------


def seconds(work: Work, box: int, machine: Machine, measured: dict[str, float]) -> dict[str, float]:
    """By what takes them, shared by the devices; the disk is the node's."""
    device, n = machine.device, machine.devices
    rate = {name: measured.get(name, 1e9 * visit_seconds(device, name)) * 1e-9 for name in KERNELS}
    traffic, cached = 4 * work.coefficients, 4 * work.data.particles * coefficients(box / 2)
    once = cached < machine.memory
    return {
        "operator": sum(count * rate[name] for name, count in work.visits.items()) / n,
        "transforms": TRANSFORM_BYTES * work.pixels / device.memory / MEMORY_EFFICIENCY / n,
        "CTF": CTF_BYTES * work.coefficients / device.memory / MEMORY_EFFICIENCY / n,
        "launches": STEP_SECONDS * work.steps / (1 if work.shared else n),
        "to the device": traffic / device.host / MEMORY_EFFICIENCY / n,
        "disk": min(cached, traffic) / machine.disk if once else traffic / machine.disk,
    }


def prepare_seconds(data: DataSet, machine: Machine) -> float:
    """Raw images read twice, for the training box and for the half-maps', on the host's cores."""
    pixels = 2 * data.particles * data.box**2
    return max(PREPARE_NS * 1e-9 * pixels / machine.cores, 4 * pixels / machine.disk)


def total(parts: dict[str, float]) -> float:
    """Reading runs ahead while the device computes, so the slower of the two counts."""
    computing = sum(parts[name] for name in ("operator", "transforms", "CTF", "launches"))
    return max(computing, parts["to the device"], parts["disk"])


DATA = (
    DataSet("TRPV1", 200_000, 128, 224, 2, 100_000 / 128**3),
    DataSet("tri-snRNP", 102_500, 180, 380, 5, 5_000_000 / 380**3),
    DataSet("a million", 1_000_000, 256, 512, 5, 0.05),
)


def print_data_set(data: DataSet, machines: list[Machine], measured: dict[str, float]) -> None:
    small, large = (data.mask * box**3 for box in (data.training_box, data.box))
    print(
        f"\n{data.name}: {data.particles} particles, {data.training_box} px and {small:.3g} voxels for training,",
        end=" ",
    )
    print(f"{data.box} px and {large:.3g} voxels for the half-maps, K = {data.latents}")
    trained, mapped = training(data, TrainParameters()), half_maps(data, ReconstructParameters())
    for name, work in (("training", trained), ("rigid or flexible half-maps", mapped)):
        visits = ", ".join(f"{kernel} {count:.2g}" for kernel, count in work.visits.items() if count)
        print(f"  {name}, voxel visits: {visits}")
    for machine in machines:
        print(f"  {machine.devices} x {machine.device.name}")
        prepared = prepare_seconds(data, machine)
        learning = seconds(trained, data.training_box, machine, measured)
        mapping = {name: 2 * value for name, value in seconds(mapped, data.box, machine, measured).items()}
        print(f"    {'particles made ready':24}{prepared / 60:7.1f} min  (CPU and disk)")
        for name, parts in (("training", learning), ("half-maps, both kinds", mapping)):
            shares = ", ".join(f"{of} {value:.0f}" for of, value in parts.items())
            print(f"    {name:24}{total(parts) / 60:7.1f} min  (s: {shares})")
        print(f"    {'all':24}{(prepared + total(learning) + total(mapping)) / 60:7.1f} min")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ns", action="append", default=[], metavar="KERNEL=NS", help="measured ns per voxel visit")
    options.add_argument("--device", choices=list(DEVICES), action="append", help="default: all")
    options.add_argument("--disk", type=float, default=3, help="GB/s")
    options.add_argument("--memory", type=float, default=512, help="GB of the host that can hold the particles' cache")
    options.add_argument("--cores", type=int, default=32, help="of the host")
    given = options.parse_args()
    measured = {name: float(value) for name, value in (pair.split("=") for pair in given.ns)}
    if unknown := set(measured) - set(KERNELS):
        raise SystemExit(f"--ns {', '.join(sorted(unknown))}: expected {', '.join(KERNELS)}")
    devices = [DEVICES[name] for name in given.device or DEVICES]
    for device in devices:
        print(f"{device.name}, ns per voxel visit")
        for name in KERNELS:
            least = ", ".join(f"{of} {1e9 * value:.4f}" for of, value in limits(device, name).items())
            print(f"    {name:10} least by {least}; assumed {1e9 * visit_seconds(device, name):.3f}")
    print(f"measured instead: {', '.join(given.ns) or 'none'}")
    machines = [
        Machine(device, number, given.cores, given.disk * 1e9, given.memory * 1e9)
        for device in devices
        for number in (1, 8)
    ]
    for data in DATA:
        print_data_set(data, machines, measured)


if __name__ == "__main__":
    main()
