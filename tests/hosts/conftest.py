"""Fixtures of the host tests: the real RELION programs, and a phantom whose transform is known in closed form."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import starfile
from hosts.slurm_cluster import Cluster, missing_program, running_cluster
from numpy.typing import NDArray

RelionProgram = Callable[[str], Path]
RunRelion = Callable[..., str]


@pytest.fixture(scope="session")
def relion_program() -> RelionProgram:
    """`relion_program("relion_project")` is its path. Missing: the test is skipped, or fails where CI=true."""

    def find(name: str) -> Path:
        path = shutil.which(name)
        if path is None:
            text = f"{name} is not installed (apt-get install relion)"
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail(text)
            pytest.skip(text)
        return Path(path)

    return find


@pytest.fixture(scope="session")
def run_relion(relion_program: RelionProgram) -> RunRelion:
    """`run_relion("relion_project", "--i", ..., cwd=folder)` runs it to success and gives what it printed."""

    def run(name: str, *arguments: object, cwd: Path) -> str:
        command = [str(relion_program(name)), *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM with two nodes. A program of it missing: the test is skipped, or fails where CI=true."""
    name = missing_program()
    if name:
        text = f"{name} is not installed (apt-get install slurmctld slurmd slurm-client munge)"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(text)
        pytest.skip(text)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@dataclass(frozen=True)
class Phantom:
    """Gaussians at `centres_A` (m, 3) xyz, so lopsided that no rotation, mirror or inversion leaves it alike."""

    centres_A: NDArray[np.float64]
    weights: NDArray[np.float64]
    sigma_A: float

    def transform(self, k: NDArray[np.float64]) -> NDArray[np.complex128]:
        """Fourier transform at k (..., 3) in 1/A."""
        envelope = np.exp(-2.0 * np.pi**2 * self.sigma_A**2 * (k**2).sum(axis=-1))
        return envelope * (np.exp(-2j * np.pi * (k @ self.centres_A.T)) @ self.weights)

    def volume(self, box: int, pixel_size_A: float) -> NDArray[np.float32]:
        """Density per voxel (z, y, x), centre at voxel box // 2."""
        axis = (np.arange(box) - box // 2) * pixel_size_A
        shape = np.exp(-((axis[:, None] - self.centres_A.T[:, None, :]) ** 2) / (2.0 * self.sigma_A**2))  # (3, box, m)
        shape *= pixel_size_A / (np.sqrt(2.0 * np.pi) * self.sigma_A)
        return np.einsum("m,xm,ym,zm->zyx", self.weights, *shape).astype(np.float32)

    def images(
        self,
        projections: NDArray[np.float64],
        origins_A: NDArray[np.float64],
        box: int,
        pixel_size_A: float,
        factor: NDArray[np.generic] | float = 1.0,
    ) -> NDArray[np.float32]:
        """Images (n, box, box) of the projections (n, 2, 3), lying at minus the origins, transform times `factor`.

        `factor` is (n, box, box // 2 + 1) in rfft2 order. A point at x is seen at projections @ x.
        """
        ky, kx = np.meshgrid(np.fft.fftfreq(box, pixel_size_A), np.fft.rfftfreq(box, pixel_size_A), indexing="ij")
        k = np.stack([kx, ky], axis=-1)
        transforms = self.transform(np.einsum("yxi,nij->nyxj", k, projections))
        transforms = transforms * np.exp(2j * np.pi * np.einsum("yxi,ni->nyx", k, origins_A)) * factor
        images = np.fft.irfft2(transforms, s=(box, box))
        return np.fft.fftshift(images, axes=(1, 2)).astype(np.float32)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    rng = np.random.default_rng(5)
    centres = rng.uniform(-1.0, 1.0, (14, 3)) * [16.0, 12.0, 9.0] + [4.0, -3.0, 2.0]
    return Phantom(centres, rng.uniform(0.5, 2.0, 14), sigma_A=3.0)


StarTable = Mapping[str, Any]
WriteStar = Callable[..., Path]


@pytest.fixture(scope="session")
def write_star() -> WriteStar:
    """`write_star(path, particles, optics=None)`: columns by label; one table, as RELION 3.0 has it, without optics."""

    def write(path: Path, particles: StarTable, optics: StarTable | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        tables = {"particles" if optics is not None else "": pd.DataFrame(particles)}
        if optics is not None:
            optics = {name: value if isinstance(value, Sequence) else [value] for name, value in optics.items()}
            tables = {"optics": pd.DataFrame(optics), **tables}
        starfile.write(tables, path, overwrite=True, float_format="%.9g")
        return path

    return write
