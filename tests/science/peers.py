"""cryoDRGN and RECOVAR on the particles of a case, from the command line, each in an environment of its own.

Both are installed from the package index on first use. cryoDRGN trains on the full box with 256 units, which suits a
CPU, for as long as it is given; a state's map is its decoder's at the latent of the state's particles. RECOVAR runs its
pipeline with its defaults; a state's map is what `compute_state` gives at that latent.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from benchmarks.against_cryodrgn import BUILD, Rival, environment
from numpy.typing import NDArray
from science.cases import ROOT, Size
from science.scores import agreement, latent_at, map_score, state_mask

from flex_job.volume import read_volume

__all__ = ["peer_records"]

RECOVAR = "recovar==1.0.5"
STAR, MASK = "Refine3D/job001/run_data.star", "MaskCreate/job002/mask.mrc"
UNITS = "256"
PIP_FLAGS = os.environ.get("PIP_FLAGS", "").split()
States = list[tuple[Path, NDArray[np.float64]]]
Found = tuple[NDArray[np.float64], Callable[[NDArray[np.float64]], list[NDArray[np.float32]]]]
"""A method's latents (n, K), and what makes its maps at points (m, K)."""


def peer_records(work: Path, size: Size, dims: int, states: States) -> dict[str, Any]:
    """By name: seconds, agreement of the latents with the truth, score of each state's map; or why there are none."""
    true = np.load(work / "truth/truth.npz")["latents"]
    records: dict[str, Any] = {}
    for name, run in (("cryodrgn", _cryodrgn), ("recovar", _recovar)):
        began = time.monotonic()
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            found, maps_at, told = run(work, folder, size, dims)
            seconds = time.monotonic() - began
            maps = maps_at(np.array([latent_at(found, true, state) for _, state in states]))
            record = {"seconds": seconds, "told": told} | agreement(found, true) | {"states": []}
            for map, (path, state) in zip(maps, states, strict=True):
                density = read_volume(path)
                score = map_score(map, density, state_mask(density))
                record["states"].append({"latents": list(state), "score": score})
        except (RuntimeError, SystemExit, OSError, subprocess.SubprocessError) as error:
            record = {"seconds": time.monotonic() - began, "failed": " ".join(str(error).split())[-500:]}
        records[name] = record
    return records


def _recovar_environment(pip_flags: list[str]) -> Path:
    """RECOVAR's own environment beside cryoDRGN's, made on first use; returns its bin folder."""
    folder = ROOT / "build/recovar/environment"
    if not (folder / "bin/recovar").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", *pip_flags, RECOVAR], check=True)
    return folder / "bin"


def _cryodrgn(work: Path, folder: Path, size: Size, dims: int) -> tuple[Any, Any, str]:
    program = environment(BUILD / "environment", PIP_FLAGS) / "cryodrgn"
    rival = Rival(program, work, folder, size.threads)
    out = folder / "trained"
    rival.call(
        "train_vae", rival.star, "--datadir", work, "--poses", rival.poses, "--ctf", rival.ctf, "--zdim", str(dims),
        "-n", "1000", "--enc-dim", UNITS, "--dec-dim", UNITS, "-o", out, "--no-analysis", "--seed", "0",
        seconds=60 * size.peer_minutes,
    )  # fmt: skip
    epochs = [int(match[1]) for path in out.glob("z.*.pkl") if (match := re.fullmatch(r"z\.(\d+)\.pkl", path.name))]
    # the last may have been cut off while it was written
    epochs = sorted(number for number in epochs if (out / f"weights.{number}.pkl").exists())[:-1]
    if not epochs:
        raise RuntimeError(f"no epoch of cryoDRGN ended in {size.peer_minutes:g} minutes")
    last = epochs[-1]
    found = np.asarray(pickle.loads((out / f"z.{last}.pkl").read_bytes()), dtype=np.float64)

    def maps_at(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        at, volumes = folder / "points.txt", folder / "volumes"
        np.savetxt(at, points)
        rival.call(
            "eval_vol", out / f"weights.{last}.pkl", "-c", out / "config.yaml", "--zfile", at, "-o", volumes,
        )  # fmt: skip
        return [mrcfile.read(path) for path in sorted(volumes.glob("*.mrc"))]

    return found, maps_at, f"{last + 1} epochs"


def _recovar(work: Path, folder: Path, size: Size, dims: int) -> tuple[Any, Any, str]:
    program, out = _recovar_environment(PIP_FLAGS) / "recovar", folder / "pipeline"

    def call(*arguments: str | Path) -> None:
        settings = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(size.threads)}
        said = folder / "recovar.log"
        with said.open("a") as log:
            command = [program, *arguments]
            try:
                done = subprocess.run(
                    command, env=settings, stdout=log, stderr=log, check=False, timeout=60 * size.peer_minutes
                )
            except subprocess.TimeoutExpired:
                why = f"was not done after {size.peer_minutes:g} minutes; the last that it said:"
            else:
                why = f"ended with {done.returncode}:" if done.returncode else ""
        if why:
            raise RuntimeError(f"recovar {arguments[0]} {why} {said.read_text().strip().splitlines()[-1]}")

    call(
        "pipeline", work / STAR, "--datadir", work, "-o", out, "--mask", work / MASK, "--zdim", str(dims),
        "--accept-cpu", "--no-downsample",
    )  # fmt: skip
    found = np.load(out / f"model/zdim_{dims}/latent_coords.npy").astype(np.float64).reshape(-1, dims)

    def maps_at(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        at, volumes = folder / "points.txt", folder / "states"
        np.savetxt(at, points)
        call("compute_state", out, "-o", volumes, "--latent-points", at, *(["--zdim1"] if dims == 1 else []))
        return [mrcfile.read(path) for path in sorted(volumes.glob("state[0-9][0-9][0-9].mrc"))]

    return found, maps_at, "its defaults"
