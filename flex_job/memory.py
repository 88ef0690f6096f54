"""What fits where: disk, host and device memory that a job will need, and how many particles go at a time.

The formulas count the tensors that are alive at the worst moment of a step; tests hold them against what the steps
really take. They are known before the first particle is read, so that a job that cannot end does not begin.
"""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Grid", "MemoryPlan", "Sizes", "disk_problems", "free_memory", "out_of_memory_hint", "plan_memory"]

# Times a batch's coefficients: with what multiplies them 1.5, for one worked on and one waiting; 2.25 in the making.
READY = 5.25
USED_OF_FREE = 0.8  # the rest is for what allocators lose and libraries take
MODES = 30  # directions of the linear start
MOST_PIXELS = {"cpu": 4_000_000, "cuda": 100_000_000}  # of a solver's batch: more is not faster
MOST_PARTICLES = {"cpu": 500, "cuda": 4096}
VOLUMES = 32  # bytes per voxel of the whole box, in the filters and the FSC of the solver
VECTORS = 22  # of all voxels, in the solver: of each half the unknowns, gradient, direction, product, and as many made
ADVICE = "lower training_box, reconstruct_box or latent_dims"


@dataclass(frozen=True)
class Grid:
    """Where a step works: images of `box` pixels, rendered `oversampling` times finer, coefficients below `limit` waves
    per box, `voxels` in the domain."""

    box: int
    limit: float
    voxels: int
    oversampling: int = 1

    @property
    def plane(self) -> int:
        """Bytes of one image, and about those of its half plane of coefficients."""
        return 4 * (self.box * self.oversampling) ** 2

    @property
    def packed(self) -> int:
        """Bytes of one image's packed coefficients, complex64."""
        return int(8 * math.pi / 2 * self.limit**2)


@dataclass(frozen=True)
class Sizes:
    """What the plan depends on. `start` is the grid of the linear start (None without one), `training` that of the last
    epochs, `full` that of the half-maps; `training_box` the cached particles' box."""

    particles: int
    batch: int
    latent_dims: int
    flow_layers: int
    flow_units: int
    vertices: int
    cells: int
    training_box: int
    start: Grid | None
    training: Grid
    full: Grid
    device: str = "cpu"
    threads: int = 1

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def visit_bytes(self, grid: Grid, directions: int) -> int:
        """Per particle of a batch: latent inference with derivatives along `directions`, or a step of the flow.

        Inference holds images and slopes, the transforms of one or the other, and the packed coefficients as they are
        taken out and scaled; the flow's step an image, its transform, the gradient's, and the activations.
        """
        vertices = 20 * (1 + directions) * self.vertices
        inference = (1 + 2 * directions) * (grid.plane + grid.packed) + vertices
        activations = 8 * self.flow_layers * self.flow_units
        step = 4 * (grid.plane + grid.packed) + 44 * self.vertices + activations
        return max(inference, step) + self._operator_bytes(grid, directions) + int(READY * grid.packed)

    def solver_bytes(self, grid: Grid) -> int:
        """Per particle of a batch: projection, and the gradient's way back."""
        images = 4 * grid.plane + 3 * grid.packed + 28 * self.vertices
        return images + self._operator_bytes(grid, 0) + int(READY * grid.packed)

    def fixed_bytes(self, grid: Grid, *, solver: bool) -> int:
        """On the device whatever the batch: tables of the operator and each thread's sums; for the solver its vectors
        and volumes too."""
        tables = 60 * grid.voxels + 200 * self.cells + 4 * self.threads * grid.voxels
        return tables + solver * (4 * VECTORS * grid.voxels + VOLUMES * grid.box**3)

    def _operator_bytes(self, grid: Grid, directions: int) -> int:
        """On a GPU the cells' maps for each image and slope and their gradient, and the Fourier library's workspace."""
        return (2 + directions) * 32 * self.cells + (1 + directions) * grid.plane if self.on_gpu else 0

    @property
    def metadata_bytes(self) -> int:
        """In the host's memory for all particles: poses, CTFs, what was read of the particle list, latents."""
        k = self.latent_dims
        return self.particles * (500 + 8 * k + 8 * k * k)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by place; `micro_batch`, `start_batch` and `solver_batch` are how many particles go at a time.

    The minibatch of the training is a statistical choice and never made larger; where it does not fit it is gone
    through in parts of `micro_batch`. `problems` says why nothing fits, if so.
    """

    device: str
    free: int
    training_cache: int
    full_cache: int
    metadata: int
    training_fixed: int
    training_particle: int
    solver_fixed: int
    solver_particle: int
    batch: int
    micro_batch: int
    start_batch: int
    solver_batch: int
    problems: tuple[str, ...] = ()

    @property
    def disk(self) -> int:
        """Bytes of both caches."""
        return self.training_cache + self.full_cache

    def lines(self) -> list[str]:
        """The plan for a user's eyes, one line for each place."""
        training = self.training_fixed + self.micro_batch * self.training_particle
        solver = self.solver_fixed + self.solver_batch * self.solver_particle
        parts = "" if self.micro_batch == self.batch else f", in parts of {self.micro_batch}"
        return [
            f"memory: particles' cache on disk {_size(self.training_cache)} for training, "
            f"{_size(self.full_cache)} for the half-maps",
            f"memory: particles' parameters {_size(self.metadata)} in the host's memory",
            f"memory: training {_size(training)} of {_size(self.free)} free on {self.device}, "
            f"{self.batch} particles at a time{parts}",
            f"memory: half-maps {_size(solver)} of {_size(self.free)} free on {self.device}, "
            f"{self.solver_batch} particles at a time",
        ]


def plan_memory(sizes: Sizes, free: int, *, sharing: int = 1) -> MemoryPlan:
    """The plan on the device of `sizes`, `free` bytes of which `sharing` processes of this job share."""
    device, kind = sizes.device, "cuda" if sizes.on_gpu else "cpu"
    usable = USED_OF_FREE * free / sharing
    if kind == "cpu":
        usable -= sizes.metadata_bytes
    training_fixed = sizes.fixed_bytes(sizes.training, solver=False)
    training_particle = sizes.visit_bytes(sizes.training, sizes.latent_dims)
    solver_fixed = sizes.fixed_bytes(sizes.full, solver=True)
    solver_particle = sizes.solver_bytes(sizes.full)
    micro = min(sizes.batch, int((usable - training_fixed) // training_particle))
    start, start_needed = sizes.batch, 0
    if sizes.start is not None:
        fixed, particle = sizes.fixed_bytes(sizes.start, solver=False), sizes.visit_bytes(sizes.start, MODES)
        start, start_needed = min(sizes.batch, int((usable - fixed) // particle)), fixed + particle
    fitting = int((usable - solver_fixed) // solver_particle)
    pixels = MOST_PIXELS[kind] // (sizes.full.plane // 4)
    solver = min(fitting, MOST_PARTICLES[kind], max(8, pixels))
    problems = []
    where = f"{_size(free)} free on {device}" + (f", shared by {sharing} processes" if sharing > 1 else "")
    for what, count, needed, lower in (
        ("training", micro, training_fixed + training_particle, "training_box or latent_dims"),
        ("the linear start", start, start_needed, "training_box, or set latent_start to random"),
        ("the half-maps", solver, solver_fixed + solver_particle, "reconstruct_box, or oversampling"),
    ):
        if count < 1:
            missing = max(0, needed - usable)
            problems.append(
                f"{what}: not even one particle at a time fits; {_size(missing)} more than the {where} are needed. "
                f"Lower {lower}, or use a device with more memory"
            )
    return MemoryPlan(
        device=device,
        free=free,
        training_cache=_cache_bytes(sizes.particles, sizes.training_box),
        full_cache=_cache_bytes(sizes.particles, sizes.full.box) if sizes.full.box != sizes.training_box else 0,
        metadata=sizes.metadata_bytes,
        training_fixed=training_fixed,
        training_particle=training_particle,
        solver_fixed=solver_fixed,
        solver_particle=solver_particle,
        batch=sizes.batch,
        micro_batch=max(micro, 1),
        start_batch=max(start, 1),
        solver_batch=max(solver, 1),
        problems=tuple(problems),
    )


def free_memory(device: torch.device | str) -> int:
    """Bytes free now: on a GPU as its driver says, else in the host's memory and in this process's share of it."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    # what a scheduler or container allows: control groups of version 2, then 1
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            folder = Path("/sys/fs/cgroup")
            free.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return max(0, min(free))


def disk_problems(folder: Path, needed: int) -> list[str]:
    """Why `folder`, which need not exist yet, has no room for `needed` bytes; empty when it has."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free >= needed:
        return []
    return [
        f"{folder}: {_size(free)} free on that disk, the cache of particles needs {_size(needed)}; free some, give "
        "another folder with scratch, or lower training_box or reconstruct_box"
    ]


def out_of_memory_hint(error: BaseException) -> str:
    """What to do about an error that says that memory ran out; empty for any other error."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"the GPU's memory ran out ({text}). {ADVICE[0].upper()}{ADVICE[1:]}, or end what else runs on this GPU "
            "(nvidia-smi lists it); the job goes on from its last checkpoint when started again"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return (
            f"the host's memory ran out ({text or 'no more told'}). {ADVICE[0].upper()}{ADVICE[1:]}, or ask the "
            "scheduler for more memory; the job goes on from its last checkpoint when started again"
        )
    return ""


def _cache_bytes(particles: int, box: int) -> int:
    """Two float16 numbers for each coefficient below Nyquist."""
    return int(particles * 4 * math.pi / 2 * (box / 2) ** 2)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
