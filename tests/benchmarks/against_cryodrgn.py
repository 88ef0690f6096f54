"""Side by side with cryoDRGN on the same simulated particles and threads: time per epoch, time to find the motion.

Both are run from the command line as a user would, cryoDRGN (from the package index, in an environment of its own) with
its default architecture for the time per epoch, and with settings that suit a CPU for what it learns in a given time.
About 40 minutes on two quiet cores, with the defaults; `--skip learn` leaves the longer half out. On one hinge and
6,000 particles of 64 px at a signal-to-noise ratio of 0.1 unless `--project` names another simulated project.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import starfile
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/cryodrgn"
CRYODRGN = "cryodrgn==4.3.1"
ENOUGH = 0.95  # rank correlation with the true latent
SMALL_BOX, SMALL_UNITS = 32, 256
OUR_COMMAND = "from integration.local.cli import {0}; {0}()"
Curve = list[tuple[float, float]]
STAR, MASK, TRUTH = "Refine3D/job001/run_data.star", "MaskCreate/job002/mask.mrc", "truth/truth.npz"


def environment(
    folder: Path, pip_flags: list[str], program: str = "cryodrgn", packages: tuple[str, ...] = (CRYODRGN,)
) -> Path:
    """An environment of its own for a method, made on first use; returns its bin folder.

    Raises RuntimeError, with the last that pip said, where a package cannot be installed.
    """
    if not (folder / "bin" / program).exists():
        print(f"installing {' '.join(packages)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [folder / "bin/python", "-m", "pip", "install", "--quiet", *pip_flags]
        # the same torch as ours, so that the comparison is of the methods
        torch_too = f"torch=={version('torch').split('+')[0]}"
        done = subprocess.run([*pip, torch_too, *packages], text=True, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise RuntimeError(f"pip cannot install {' '.join(packages)}: {' '.join(done.stderr.split())[-400:]}")
    return folder / "bin"


def threaded(threads: int) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}


def said(command: Sequence[str | Path], threads: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and keep all that it says."""
    return subprocess.run(
        command, env=threaded(threads), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def simulate(folder: Path) -> None:
    if not (folder / TRUTH).exists():
        arguments: list[str | Path] = [sys.executable, "-c", OUR_COMMAND.format("main"), "simulate", "--o", folder]
        subprocess.run(arguments, check=True, env=threaded(1))


def rank(latents: np.ndarray, truth: np.ndarray) -> float:
    """Rank correlation of a latent with the true one, whatever its sign."""
    return abs(float(spearmanr(latents, truth).statistic))


class Rival:
    """cryoDRGN on one project: what it is given, and its runs. `log` keeps all that it says."""

    def __init__(self, program: Path, project: Path, work: Path, threads: int) -> None:
        self.program, self.project, self.work, self.threads = program, project, work, threads
        work.mkdir(parents=True, exist_ok=True)
        self.log = work / "cryodrgn.log"
        self.star = project / STAR
        self.poses, self.ctf = work / "poses.pkl", work / "ctf.pkl"
        self.call("parse_pose_star", self.star, "-o", self.poses)
        self.call("parse_ctf_star", self.star, "-o", self.ctf)

    def call(self, *arguments: str | Path, seconds: float | None = None) -> str:
        """Run a subcommand, for at most `seconds`; returns what it said."""
        command = [self.program, *arguments]
        try:
            done = said(command, self.threads, timeout=seconds)
        except subprocess.TimeoutExpired:
            return ""
        with self.log.open("a") as file:
            file.write(done.stdout)
        if done.returncode:
            raise SystemExit(f"cryodrgn {arguments[0]} failed: see {self.log}")
        return done.stdout

    def epoch_seconds(self, count: int) -> float:
        """One epoch over the first particles, default architecture, by its own clock."""
        chosen = self.work / f"first_{count}.pkl"
        chosen.write_bytes(pickle.dumps(np.arange(count)))
        text = self.call(
            "train_vae", self.star, "--datadir", self.project, "--poses", self.poses, "--ctf", self.ctf, "--zdim", "1",
            "-n", "1", "--ind", chosen, "-o", self.work / f"epoch_{count}", "--no-analysis", "--seed", "0",
        )  # fmt: skip
        found = re.search(r"total loss = \S+; Finished in (\d+):(\d+):([\d.]+)", text)
        if found is None:
            raise SystemExit(f"cryodrgn train_vae said no time per epoch: see {self.log}")
        hours, minutes, seconds = (float(part) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds

    def learn(self, seconds: float) -> Curve:
        """(seconds since the start, rank correlation) after every epoch that ends in the time given."""
        small, out = self.work / f"particles_{SMALL_BOX}.mrcs", self.work / "learned"
        began = time.time()
        self.call("downsample", self.star, "-D", str(SMALL_BOX), "-o", small, "--datadir", self.project)
        self.call(
            "train_vae", small, "--poses", self.poses, "--ctf", self.ctf, "--zdim", "1", "-n", "1000",
            "--enc-dim", str(SMALL_UNITS), "--dec-dim", str(SMALL_UNITS), "-o", out, "--no-analysis", "--seed", "0",
            seconds=seconds,
        )  # fmt: skip
        truth = np.load(self.project / TRUTH)["latents"][:, 0]
        numbered = sorted((int(path.name.split(".")[1]), path) for path in out.glob("z.*.pkl"))
        whole = [path for _, path in numbered if path.stat().st_mtime > began and path.stat().st_size]
        return [(path.stat().st_mtime - began, rank(pickle.loads(path.read_bytes())[:, 0], truth)) for path in whole]


def subset(project: Path, count: int) -> Path:
    """A STAR file of the first particles, beside the whole one."""
    path = project / STAR
    small = path.with_name(f"first_{count}_data.star")
    tables = starfile.read(path)
    tables["particles"] = tables["particles"][:count]
    starfile.write(tables, small, overwrite=True)
    return small


def our_training(project: Path, star: Path, job: Path, threads: int, count: int) -> tuple[list[float], Curve]:
    """Seconds of every epoch, and (seconds since the start, rank correlation) as the checkpoints appear."""
    truth = np.load(project / TRUTH)["latents"][:count, 0]
    command: list[str | Path] = [
        sys.executable, "-c", OUR_COMMAND.format("train"), "--o", f"{job}/", "--in_parts", star,
        "--in_3dref", project / "Refine3D/job001/run_class001.mrc", "--in_mask", project / MASK,
        "--latent_dims", "1", "--j", str(threads), "--restart", "yes",
    ]  # fmt: skip
    seen: Curve = []
    ended = threading.Event()
    began = time.time()

    def watch() -> None:
        last = 0.0
        while not ended.wait(0.1):
            for path in job.glob("checkpoint_train_*.pt"):
                if path.exists() and path.stat().st_mtime > max(last, began):
                    last = path.stat().st_mtime
                    latents = torch.load(path, weights_only=True)["latents"]
                    seen.append((last - began, rank(latents[:, 0].numpy(), truth)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        done = said(command, threads, cwd=project)
    finally:
        ended.set()
        watcher.join()
    if done.returncode:
        raise SystemExit(done.stdout)
    table = starfile.read(job / "particles.star")["particles"]
    seen.append((time.time() - began, rank(table["flexLatent1"].to_numpy(), truth)))
    told = re.compile(r"^(\S+ \S+) INFO train: epoch \d+/|^(\S+ \S+) INFO linear start", re.M)
    lines = told.findall((job / "flex.log").read_text())
    marks = [datetime.strptime(a or b, "%Y-%m-%d %H:%M:%S,%f").timestamp() for a, b in lines]
    marks = [mark for mark in marks if mark > began]
    return list(np.diff(marks)), seen


def shown(curve: Curve) -> str:
    return ", ".join(f"{value:.3f} ({seconds:.0f} s)" for seconds, value in curve)


def reached(curve: Curve) -> str:
    for seconds, value in curve:
        if value >= ENOUGH:
            return f"{seconds:.0f} s"
    last = curve[-1] if curve else (0.0, 0.0)
    return f"not reached ({last[1]:.3f} after {last[0]:.0f} s)"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--environment", type=Path, default=BUILD / "environment", help="of cryoDRGN, made if missing")
    options.add_argument("--pip-flags", default="", help="e.g. '--find-links FOLDER' for a CPU torch")
    options.add_argument("--work", type=Path, default=BUILD, help="folder for what is written")
    options.add_argument("--project", type=Path, help="simulated project; made in the work folder if missing")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--counts", type=int, nargs="+", default=[300, 600], help="particles of its timed epochs")
    options.add_argument("--minutes", type=float, default=20, help="time it is given to learn")
    options.add_argument("--skip", choices=("epoch", "learn"), action="append", default=[], help="part to leave out")
    given = options.parse_args()
    project = (given.project or given.work / "one_hinge").resolve()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = environment(given.environment.resolve(), given.pip_flags.split()) / "cryodrgn"
    simulate(project)
    rival = Rival(program, project, work, given.threads)
    total = len(np.load(project / TRUTH)["latents"])
    print(f"{total} particles, {given.threads} threads", flush=True)
    ours, curve = our_training(project, project / STAR, work / "ours", given.threads, total)
    per_epoch = float(np.mean(ours))
    print(f"ours, {total} particles: {per_epoch:.2f} s per epoch (map updates included; slowest {max(ours):.2f} s)")
    print(f"    rank correlation: {shown(curve)}", flush=True)
    if "epoch" not in given.skip:
        seconds = []
        for count in given.counts:
            epochs, _ = our_training(project, subset(project, count), work / f"ours_{count}", given.threads, count)
            mean = float(np.mean(epochs))
            seconds.append(rival.epoch_seconds(count))
            print(f"{count} particles: cryoDRGN {seconds[-1]:.1f} s per epoch, ours {mean:.2f} s, ", end="")
            print(f"ratio {seconds[-1] / mean:.0f}", flush=True)
        slope = float(np.polyfit(given.counts, seconds, 1)[0]) if len(seconds) > 1 else seconds[0] / given.counts[0]
        print(f"cryoDRGN's epoch grows by {1000 * slope:.0f} ms a particle: {slope * total:.0f} s for {total} (scaled)")
        print(
            f"    ours {per_epoch:.2f} s (run); ratio {slope * total / per_epoch:.0f} (at least 50 asked)", flush=True
        )
    if "learn" not in given.skip:
        theirs = rival.learn(60 * given.minutes)
        print(f"time to a rank correlation of {ENOUGH}, from the STAR file: ours {reached(curve)}")
        print(f"    cryoDRGN, {SMALL_BOX} px, {SMALL_UNITS} units, given {given.minutes:g} minutes: {reached(theirs)}")
        print(f"    its rank correlation after each epoch: {shown(theirs)}")


if __name__ == "__main__":
    main()
