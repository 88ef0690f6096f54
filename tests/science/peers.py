"""cryoDRGN and RECOVAR on the particles of a case, from the command line, each in an environment of its own.

Both are installed from the package index on first use and get the particles' own poses, CTFs and halves, as pickles
made by cryoDRGN's parsers (RECOVAR's documented input). Settings suit two thousand particles and a CPU:

- cryoDRGN trains for as long as it is given, on the full box, with 128 units, a learning rate of 0.001 and 8 images at
  a time. Its defaults (1,024 units, 0.0001, 16) are for GPUs: one epoch would take longer than ten of these. A state's
  map is its decoder's at the latent of the state's particles.
- RECOVAR runs its pipeline and `compute_state` with `--low-memory-option` (50 columns of the covariance, not 300) and
  3 GB for its batches (without a GPU it would plan for 80). Version 1.0.5 is not used: without a GPU it puts images
  into a grid of twice the box without scaling their frequencies, and its mean comes out magnified twofold.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import mrcfile
import numpy as np
import starfile
from benchmarks.against_cryodrgn import BUILD, MASK, STAR, Rival, environment
from numpy.typing import NDArray
from science.cases import ROOT, Size
from science.scores import agreement, latent_at, map_score, state_mask

from flex_job.volume import read_volume

__all__ = ["peer_records"]

RECOVAR, JAX = "recovar==0.4.5", "jax==0.5.0"  # the jax that this RECOVAR asks for
RECOVAR_ENVIRONMENT = ROOT / "build/recovar/0.4.5"
UNITS, RATE, BATCH = "128", "0.001", "8"
MEMORY_GB = 3
# `recovar COMMAND` with the memory that it plans for set, for which only the pipeline has a flag
COMMAND = "from recovar import utils; utils.GPU_MEMORY_LIMIT = {1}; from recovar.commands.{0} import main; main()"
WRONG = 0.3  # no map in the right frame scores less, however noisy
PIP_FLAGS = os.environ.get("PIP_FLAGS", "").split()
States = list[tuple[Path, NDArray[np.float64]]]
Found = tuple[NDArray[np.float64], Callable[[NDArray[np.float64]], list[NDArray[np.float32]]], str]
"""A method's latents (n, K), what makes its maps at points (m, K), and its settings in words."""


def peer_records(work: Path, size: Size, dims: int, states: States) -> dict[str, Any]:
    """By name: seconds, those of a core, agreement of the latents with the truth, score of each state's map; or why
    there are none."""
    true = np.load(work / "truth/truth.npz")["latents"]
    records: dict[str, Any] = {}
    for name, run in PEERS.items():
        began, worked = time.monotonic(), _core_seconds()
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            record = _scored(run(work, folder, size, dims), true, states)
        except (RuntimeError, SystemExit, OSError, subprocess.SubprocessError) as error:
            record = {"failed": " ".join(str(error).split())[-500:]}
        spent = {"seconds": time.monotonic() - began, "core_seconds": _core_seconds() - worked}
        records[name] = spent | {"threads": size.threads} | record
    return records


def _core_seconds() -> float:
    """Time that programs started from here have worked, whatever else the machine had to do."""
    times = os.times()
    return times.children_user + times.children_system


def _scored(found: Found, true: NDArray[np.float64], states: States) -> dict[str, Any]:
    """Raises RuntimeError where the maps are not in the frame of the particles."""
    latents, maps_at, told = found
    maps = maps_at(np.array([latent_at(latents, true, state) for _, state in states]))
    record = {"told": told} | agreement(latents, true) | {"states": []}
    for map, (path, state) in zip(maps, states, strict=True):
        density = read_volume(path)
        score = map_score(map, density, state_mask(density))
        record["states"].append({"latents": [float(value) for value in state], "score": score})
    best = max(state["score"] for state in record["states"])
    if best < WRONG:
        raise RuntimeError(f"its maps do not show the particle (FSC {best:.3f} at best): another frame, sign or scale")
    return record


def _cryodrgn(work: Path, folder: Path, size: Size, dims: int) -> Found:
    rival = _rival(work, folder, size)
    out = folder / "trained"
    rival.call(
        "train_vae", rival.star, "--datadir", work, "--poses", rival.poses, "--ctf", rival.ctf, "--zdim", str(dims),
        "-n", "1000", "--enc-dim", UNITS, "--dec-dim", UNITS, "--lr", RATE, "-b", BATCH, "-o", out,
        "--no-analysis", "--seed", "0", seconds=60 * size.peer_minutes,
    )  # fmt: skip
    last, found = _last_epoch(out)
    if not last:
        raise RuntimeError(f"no epoch of cryoDRGN ended in {size.peer_minutes:g} minutes")

    def maps_at(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        at, volumes = folder / "points.txt", folder / "volumes"
        np.savetxt(at, points)
        rival.call("eval_vol", out / f"weights.{last}.pkl", "-c", out / "config.yaml", "--zfile", at, "-o", volumes)
        return [mrcfile.read(path) for path in sorted(volumes.glob("*.mrc"))]

    return found, maps_at, f"{last} epochs, {UNITS} units, rate {RATE}, batches of {BATCH}"


def _last_epoch(out: Path) -> tuple[int, NDArray[np.float64]]:
    """The last epoch that was written whole (0 when none was) and its latents (n, K): training may have been cut off
    in the middle of a file; the weights are written before."""
    numbers = (int(match[1]) for path in out.glob("z.*.pkl") if (match := re.fullmatch(r"z\.(\d+)\.pkl", path.name)))
    for number in sorted(numbers, reverse=True):
        try:
            return number, np.asarray(pickle.loads((out / f"z.{number}.pkl").read_bytes()), dtype=np.float64)
        except (EOFError, pickle.UnpicklingError):
            continue
    return 0, np.zeros((0, 0))


def _recovar(work: Path, folder: Path, size: Size, dims: int) -> Found:
    rival = _rival(work, folder, size)
    python = environment(RECOVAR_ENVIRONMENT, PIP_FLAGS, "recovar", (JAX, RECOVAR)) / "python"
    out, halves = folder / "pipeline", folder / "halves.pkl"
    table = starfile.read(work / STAR)["particles"]
    halves.write_bytes(pickle.dumps([np.flatnonzero(table["rlnRandomSubset"] == half) for half in (1, 2)]))
    stacks = work / table["rlnImageName"].iloc[0].partition("@")[2]

    def call(what: str, *arguments: str | Path) -> None:
        command = [python, "-c", COMMAND.format(what, MEMORY_GB), *arguments]
        settings = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(size.threads)}
        said, minutes = folder / "recovar.log", size.peer_minutes
        with said.open("a") as log:
            try:
                done = subprocess.run(command, env=settings, stdout=log, stderr=log, check=False, timeout=60 * minutes)
            except subprocess.TimeoutExpired:
                why = f"was not done after {minutes:g} minutes"
            else:
                killed = "was killed, for want of memory it seems" if done.returncode == -SIGKILL else ""
                why = killed or (f"ended with {done.returncode}" if done.returncode else "")
        if why:
            last = (said.read_text().strip().splitlines() or ["nothing"])[-1]
            raise RuntimeError(f"recovar {what} {why}; the last that it said: {last}")

    call(
        "pipeline", work / STAR, "--datadir", stacks.parent, "--poses", rival.poses, "--ctf", rival.ctf,
        "--halfsets", halves, "-o", out, "--mask", work / MASK, "--zdim", str(dims), "--low-memory-option",
        "--accept-cpu",
    )  # fmt: skip
    embedding = pickle.loads((out / "model/embeddings.pkl").read_bytes())
    found = np.asarray(embedding["zs"][dims], dtype=np.float64).reshape(-1, dims)

    def maps_at(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
        at, volumes = folder / "points.txt", folder / "states"
        np.savetxt(at, points)
        call("compute_state", out, "-o", volumes, "--latent-points", at, *(["--zdim1"] if dims == 1 else []))
        return [mrcfile.read(path) for path in sorted((volumes / "all_volumes").glob("vol*.mrc"))]

    return found, maps_at, f"{RECOVAR.replace('==', ' ')}, low memory option"


def _rival(work: Path, folder: Path, size: Size) -> Rival:
    """cryoDRGN with its poses and CTFs of the particles."""
    return Rival(environment(BUILD / "environment", PIP_FLAGS) / "cryodrgn", work, folder, size.threads)


PEERS: dict[str, Callable[[Path, Path, Size, int], Found]] = {"cryodrgn": _cryodrgn, "recovar": _recovar}
