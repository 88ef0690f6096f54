"""The memory plan is what the steps really take, and says in time when nothing fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flex_job.memory import (
    USED_OF_FREE,
    Grid,
    Sizes,
    disk_problems,
    free_memory,
    out_of_memory_hint,
    plan_memory,
)

GB = 10**9
PAPER = Sizes(  # tri-snRNP of the paper: 180 px for training, 380 px for the half-maps
    particles=102_500,
    batch=500,
    latent_dims=5,
    flow_layers=6,
    flow_units=64,
    vertices=1601,
    cells=5859,
    training_box=180,
    start=Grid(40, 16, 5_000),
    training=Grid(180, 72, 500_000),
    full=Grid(380, 190, 5_000_000, oversampling=2),
    device="cuda:0",
)

MEASURE = """
import gc, json, sys
from pathlib import Path
import numpy as np
import torch
from flex_job.flow import FlowGenerator
from flex_job.latents import gauss_newton
from flex_job.manifest import _reset_peak_memory, peak_memory_MiB
from flex_job.memory import Grid, Sizes
from flex_job.solver import LeastSquares, solve
from numerics.conftest import build_world

torch.set_num_threads(1)
FEW, MANY = 30, 130
found = {}
for name, box, dims, cells, fine in (("large images", 48, 2, (4, 2, 2), 2), ("fine mesh", 32, 8, (12, 10, 10), 1)):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    world = build_world(folder, count=MANY, box=box, cells=cells, oversampling=fine)
    stack, model, n = world.stack, world.model, len(world.domain)
    flow = FlowGenerator(dims, 3, 32, torch.from_numpy(world.mesh.motion))
    latents = torch.zeros(MANY, dims)
    grid = Grid(box, box / 2, n, fine)
    sizes = Sizes(MANY, MANY, dims, 3, 32, world.domain.n_vertices, len(world.domain.vertices), box, None, grid, grid)

    def visit(count):
        batch = stack.batch(np.arange(count))
        gauss_newton(model, world.values, flow, batch, world.vertices, latents[:count])
        q = model.positions(batch, world.vertices + flow(latents[:count]))
        residual = batch.transfer * model.transform(world.values, q.detach()) - batch.data
        _, gradient = model.gradient(batch.transfer * residual, q.detach(), world.values)
        (q * gradient).sum().backward()

    def product(count):
        positions = [world.positions(world.latents)]
        problem = LeastSquares(stack, [np.arange(count)], model, positions, batch_size=count)
        problem.product(world.values[None])

    def iterations(count):
        sets, positions = [np.arange(4), np.arange(4, 8)], [world.positions(world.latents)] * 2
        taper = np.ones(len(world.values), np.float32)
        problem = LeastSquares(stack, sets, model, positions, taper=taper, batch_size=4)
        solve(problem, max_iterations=count, tolerance=0.0)

    def peak(step, count):
        step(count)
        gc.collect()
        _reset_peak_memory()
        before = peak_memory_MiB()
        step(count)
        return peak_memory_MiB() * 2**20, before * 2**20

    waiting = 3 * grid.packed  # batches read ahead, which are none here
    for what, step, planned in (
        ("visit", visit, sizes.visit_bytes(grid, dims) - waiting),
        ("solver", product, sizes.solver_bytes(grid) - waiting),
    ):
        found[f"{name} {what}"] = (planned, (peak(step, MANY)[0] - peak(step, FEW)[0]) / (MANY - FEW))
    if box == 48:
        most, before = peak(iterations, 10)
        fixed = sizes.fixed_bytes(grid, solver=True) - 60 * n  # tables, there before
        found[f"{name} fixed"] = (fixed, most - before)
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak memory as Linux does")
def test_the_plan_is_what_steps_take(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    # Memory goes back to the system at once, so that the peak is what is in use.
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    ratios = {name: planned / measured for name, (planned, measured) in found.items()}
    assert len(ratios) == 5
    assert all(0.7 < ratio < 1.7 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("free", [2 * GB, 8 * GB, 24 * GB, 80 * GB])
def test_what_is_chosen_fits_and_one_more_would_not(free: int) -> None:
    plan = plan_memory(PAPER, free)
    for fixed, particle, count, most in (
        (plan.training_fixed, plan.training_particle, plan.micro_batch, PAPER.batch),
        (plan.solver_fixed, plan.solver_particle, plan.solver_batch, 100_000_000 // 760**2),
    ):
        fits = fixed + count * particle <= USED_OF_FREE * free
        assert fits or plan.problems
        assert count == most or fixed + (count + 1) * particle > USED_OF_FREE * free
    shared = plan_memory(PAPER, free, sharing=4)
    assert shared.micro_batch <= plan.micro_batch and shared.solver_batch <= plan.solver_batch


def test_the_minibatch_is_kept_where_it_fits_and_divided_where_not() -> None:
    large, small = plan_memory(PAPER, 80 * GB), plan_memory(PAPER, 2 * GB)
    assert large.micro_batch == large.batch == 500
    assert 1 <= small.micro_batch < 500 and small.batch == 500
    assert "in parts" in "\n".join(small.lines()) and "in parts" not in "\n".join(large.lines())
    assert len(large.lines()) == 4


def test_more_of_anything_never_needs_less() -> None:
    plan = plan_memory(PAPER, 80 * GB)
    for change in (
        {"latent_dims": 8},
        {"vertices": 5000},
        {"cells": 20_000},
        {"training": Grid(256, 100, 1_000_000)},
        {"full": Grid(512, 256, 10_000_000, 2)},
        {"particles": 1_000_000},
    ):
        more = plan_memory(replace(PAPER, **change), 80 * GB)  # type: ignore[arg-type]
        names = "training_particle solver_particle solver_fixed metadata full_cache training_cache".split()
        assert all(getattr(more, name) >= getattr(plan, name) for name in names), change
        assert any(getattr(more, name) > getattr(plan, name) for name in names), change


def test_one_cache_serves_both_where_the_boxes_are_the_same() -> None:
    plan = plan_memory(replace(PAPER, training_box=380), 80 * GB)
    assert plan.full_cache == 0 and plan.disk == plan.training_cache == pytest.approx(102_500 * 226_823, rel=0.01)


@pytest.mark.parametrize(
    "free, words",
    [
        (3 * GB, ["the half-maps", "reconstruct_box", "cuda:0", "more than the 3.0 GB free"]),
        (GB // 1000, ["training", "training_box", "latent_dims", "the linear start"]),
    ],
)
def test_a_device_too_small_is_told_before_the_start(free: int, words: list[str]) -> None:
    large = replace(PAPER, full=Grid(512, 256, 20_000_000, 2))
    text = "\n".join(plan_memory(large, free).problems)
    assert all(word in text for word in words), text
    assert plan_memory(PAPER, 80 * GB).problems == ()


def test_a_host_keeps_the_particles_parameters_too() -> None:
    host = replace(PAPER, device="cpu", particles=10_000_000, threads=8)
    few = plan_memory(replace(host, particles=1000), 8 * GB)
    assert plan_memory(host, 8 * GB).problems and not few.problems and few.micro_batch == 500


def test_a_full_disk_is_told_before_the_start(tmp_path: Path) -> None:
    assert disk_problems(tmp_path / "not" / "there" / "yet", 10**6) == []
    (problem,) = disk_problems(tmp_path / "not" / "there", 10**18)
    assert "1000000000.0 GB" in problem and "scratch" in problem and str(tmp_path) in problem


def test_free_memory_of_this_host() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert 10**7 < free_memory("cpu") <= os.sysconf("SC_PHYS_PAGES") * page


@pytest.mark.parametrize(
    "error, words",
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            ["GPU's", "2 GiB", "training_box"],
        ),
        (MemoryError("Unable to allocate 5 TiB"), ["host's", "5 TiB", "latent_dims"]),
        (RuntimeError("[enforce fail at alloc] DefaultCPUAllocator: can't allocate memory: you"), ["host's"]),
        (RuntimeError("shapes do not match"), []),
        (ValueError("no"), []),
    ],
)
def test_running_out_of_memory_comes_with_advice(error: Exception, words: list[str]) -> None:
    hint = out_of_memory_hint(error)
    assert all(word in hint for word in words)
    assert bool(hint) == bool(words)


def test_what_torch_really_raises_is_recognised() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        torch.empty(10**15)
    assert "host's memory" in out_of_memory_hint(raised.value)
