"""Particles of any number stream from disk: memory grows by what is kept of each particle's parameters, no more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from end_to_end.conftest import environment

from integration.relion.simulate import simulate_project

METADATA = 1000
"""Bytes kept of a particle in memory: pose, origin, half-set, CTF, contrast, latents and their covariance (about 400
with few latents), and passing copies of some of them."""

PARTICLE_LIST = 3000
"""Bytes of a particle's row while the STAR file is read or written, as the strings of its twenty columns."""

NOISE_MIB = 8  # of the resident memory from run to run
STREAMED = "prep", "train", "rigid", "flex"  # the stages that read particles

# Freed memory goes back to the system at once: the peak is then what is in use, and not what an allocator keeps.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}

ENGINE = """
import sys
from pathlib import Path
import numpy as np
from flex_job.events import Events
from flex_job.refine import Refinement
from integration.relion.read import read_consensus
from job_specs.parameters import MeshParameters, ReconstructParameters, RefineParameters, TrainParameters

project, folder = Path(sys.argv[1]), Path(sys.argv[2])
star, mask = project / "Refine3D/job001/run_data.star", project / "MaskCreate/job002/mask.mrc"
parameters = RefineParameters(
    mesh=MeshParameters(tetra_cells=10),
    train=TrainParameters(
        latent_dims=1, rigidity=4.0, band_end=0.8, epochs=1, map_every=0, latent_start="random"
    ),
    reconstruct=ReconstructParameters(max_iterations=1),
)
consensus = read_consensus(star, mask_path=mask)
consensus = consensus.select(np.tile(np.arange(len(consensus)), int(sys.argv[3])))
run = Refinement(consensus, parameters, folder, Events(message=lambda text: None))
run.half_maps("flex", run.models)
print((folder / "cache/prep.f16").stat().st_size)
"""


def peaks(folder: Path) -> dict[str, float]:
    """Peak memory, MiB, of the stages that read particles."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    return {name: stages[name]["peak_MiB"] for name in STREAMED if name in stages}


def check(few: dict[str, float], many: dict[str, float], particles: int, data_bytes: float) -> None:
    """Growth of each stage for so many particles more, whose images and coefficients have `data_bytes`."""
    allowed = particles * METADATA / 2**20 + NOISE_MIB
    growth = {name: round(many[name] - few[name], 1) for name in few}
    data = data_bytes / 2**20
    print(f"\n{particles} particles more, {data:.0f} MiB of data; MiB more in memory: {growth}, allowed {allowed:.0f}")
    assert data > 2 * allowed, "too little data to show anything"
    assert all(value < allowed for value in growth.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks by stage need Linux")
def test_memory_does_not_grow_with_the_particles(moving: Path, tmp_path: Path) -> None:
    """1,000 and 6,000 particles of 32 px: the same images, listed again and again. The first run compiles."""
    found = {}
    for name, copies in (("first", 1), ("few", 1), ("many", 6)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, "-c", ENGINE, str(moving), str(folder), str(copies)]
        done = subprocess.run(command, env=environment() | ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found[name] = peaks(folder), int(done.stdout)
    (few, few_bytes), (many, many_bytes) = found["few"], found["many"]
    assert many_bytes == 6 * few_bytes
    check(few, many, 5000, 5000 * 32 * 32 * 4 + many_bytes - few_bytes)


def refined(project: Path) -> tuple[dict[str, float], float]:
    """Peaks by stage of the whole job on a project, and that of the process from start to end (MiB)."""
    command = [
        sys.executable, "-c", "from integration.local.cli import refine; refine()", "--o", "External/job010/",
        "--in_parts", "Refine3D/job001/run_data.star", "--in_mask", "MaskCreate/job002/mask.mrc", "--latent_dims", "2",
        "--epochs", "1", "--map_every", "1", "--tetra_cells", "10", "--max_iterations", "1", "--j", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=project, env=environment() | ENVIRONMENT)
    most = 0.0

    def watch() -> None:
        nonlocal most
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            if "VmHWM:" in status:
                most = max(most, int(status.split("VmHWM:")[1].split()[0]) / 1024)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    watcher.join()
    return peaks(project / "External/job010"), most


@pytest.mark.science
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks by stage need Linux")
def test_memory_of_fifty_thousand_particles(tmp_path: Path) -> None:
    """5,000 and 50,000 particles of 64 px through the whole job, from their STAR file to the report."""
    few, many = 5_000, 50_000
    found = {}
    for particles in (few, many):
        project = tmp_path / str(particles)
        simulate_project(project, particles=particles, box=64, pixel_size_A=4.0, motion="one_hinge", snr=0.1, seed=1)
        found[particles] = refined(project)
        shutil.rmtree(project)
    data = (many - few) * (64 * 64 * 4 + 3.14159 / 2 * 32**2 * 4)
    check(found[few][0], found[many][0], many - few, data)
    whole = found[many][1] - found[few][1]
    allowed = (many - few) * (METADATA + PARTICLE_LIST) / 2**20 + NOISE_MIB
    print(f"whole process: {found[few][1]:.0f} and {found[many][1]:.0f} MiB; {whole:.0f} more, allowed {allowed:.0f}")
    assert whole < allowed
