"""Passes through the particles that a half-map takes, and what it is worth. Run by `make bench`; about two minutes.

Exact projections of the antibody with one arm bending, 3,000 of 64 px at a signal-to-noise ratio of 0.1 and of 0.03,
with true poses. Both half-maps are solved for without motion (an antibody that does not bend) and through the true
motion, by the paper's way (L-BFGS with a line search, no preconditioner, no prior; each evaluation of the loss and its
gradient is a pass) and by `solve` (the first gradient is a pass, each iteration another). Told are, pass by pass, the
FSC of the mean of the two halves with the exact map, mean over the shells, and what the halves' own FSC lets expect of
it, sqrt(2 FSC / (1 + FSC)), as the largest difference in a shell up to FSC 0.143.

So that masks are not what is compared, all maps are multiplied with the soft mask first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from clock import cores, use_threads
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from flex_job.events import Events
from flex_job.fsc import fsc
from flex_job.imaging import ImageModel
from flex_job.mesh import build_mesh
from flex_job.operator import MASK_LEVEL, make_operator, rigid_domain, voxel_domain
from flex_job.particles import Batch
from flex_job.prep import prepare, restore
from flex_job.simulation.atoms import default_sigma_A, load_antibody
from flex_job.simulation.motion import antibody_motion
from flex_job.solver import LeastSquares, moved_vertices, solve, unfiltered_maps
from flex_job.volume import read_volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import MeshParameters, PrepParameters

PARTICLES, BOX, PIXEL_A, SNRS = 3000, 64, 4.0, (0.1, 0.03)
MOST = 16  # passes of L-BFGS
ITERATIONS = 10
REACH_A = 6.0  # beads around a vertex that tell how it moves


class Case:
    """Simulated particles, their mask and the exact map, and the least-squares problem of their two halves."""

    def __init__(self, folder: Path, motion: str, snr: float) -> None:
        simulate_project(folder, motion=motion, particles=PARTICLES, box=BOX, pixel_size_A=PIXEL_A, snr=snr, seed=1)
        consensus = read_consensus(
            folder / "Refine3D/job001/run_data.star", mask_path=folder / "MaskCreate/job002/mask.mrc"
        )
        mask = consensus.mask
        assert mask is not None
        kept = np.load(folder / "truth/truth.npz")
        consensus = replace(consensus, rotations=kept["rotations"])
        quiet = Events(message=lambda line: None)
        cache, record = folder / "cache.f16", folder / "prep.npz"
        prepare(consensus, mask, BOX, PrepParameters(), cache, record, quiet)
        stack, _ = restore(consensus, BOX, cache, record)
        self.mask = mask.data
        state = "consensus" if motion == "none" else "state_001"
        self.truth = read_volume(folder / f"truth/{state}.mrc").data * self.mask
        if motion == "none":
            domain, vertices = rigid_domain(mask, MASK_LEVEL)
        else:
            mesh = build_mesh(consensus.map, mask, MeshParameters(), None, None, quiet)
            domain, vertices = voxel_domain(mesh, mask, MASK_LEVEL), mesh.vertices_A.astype(np.float32)
        model = ImageModel(
            make_operator(domain), BOX, stack.band(), stack_box=BOX, stack_pixel_size_A=PIXEL_A, oversampling=2
        )
        if motion == "none":
            positions = moved_vertices(model, torch.from_numpy(vertices))
        else:
            positions = true_motion(model, vertices, motion, kept["latents"][:, 0])
        halves = [np.flatnonzero(stack.halves == half) for half in (1, 2)]
        taper = ((domain.gather(self.mask) - MASK_LEVEL) / (1 - MASK_LEVEL)).clip(0, 1)
        self.problem = LeastSquares(stack, halves, model, [positions] * 2, taper=taper, batch_size=500)
        self.alone = [LeastSquares(stack, [half], model, [positions], batch_size=500) for half in halves]

    def scores(self, maps: list[NDArray[np.float32]]) -> tuple[float, float]:
        """Mean FSC with the truth, and the largest difference to what the halves let expect."""
        first, second = (each * self.mask for each in maps)
        halves, truth = fsc(first, second)[1:], fsc(first + second, self.truth)[1:]
        seen = np.logical_and.accumulate(halves > 0.143)
        expected = np.sqrt(2 * halves[seen] / (1 + halves[seen]))
        return float(truth.mean()), float(np.abs(expected - truth[seen]).max(initial=0))


def true_motion(
    model: ImageModel, vertices_A: NDArray[np.float32], motion: str, latents: NDArray[np.float64]
) -> Callable[[Batch], torch.Tensor]:
    """Vertices that move as the molecule around them does."""
    conformations = antibody_motion(load_antibody(default_sigma_A(PIXEL_A)), motion)
    hinge = conformations.hinges[0]
    distance, near = cKDTree(conformations.beads.positions_A).query(vertices_A, k=8)
    share = np.exp((distance.min(axis=1, keepdims=True) ** 2 - distance**2) / REACH_A**2)
    hinge = replace(hinge, weight=(hinge.weight[near] * share).sum(1) / share.sum(1))

    def positions(batch: Batch) -> torch.Tensor:
        moved = vertices_A + hinge.displacement(vertices_A.astype(np.float64), latents[batch.index])
        return model.positions(batch, torch.from_numpy(moved.astype(np.float32)))

    return positions


def plain_lbfgs(problem: LeastSquares) -> list[NDArray[np.float32]]:
    """Maps of the problem's one set after each pass, by SciPy's L-BFGS in the voxels where the mask is not zero.

    Generous to it: the unknown is scaled so that the first step, along the gradient, is the best one there.
    """
    linear = problem.start()[0]
    gradient = linear[0].double().numpy()
    slope = gradient @ gradient
    unit = slope / (gradient @ problem.product(linear)[0].double().numpy()) * np.sqrt(slope)
    course: list[NDArray[np.float32]] = []

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        values = torch.from_numpy((unit * x).astype(np.float32))[None]
        product = problem.product(values)[0].double().numpy()
        course.append(problem.density(values)[0])
        return float(x @ (0.5 * product + gradient)) / np.sqrt(slope), (product + gradient) / np.sqrt(slope)

    minimize(loss, np.zeros(len(gradient)), jac=True, method="L-BFGS-B", options={"maxfun": MOST, "ftol": 0, "gtol": 0})
    return course


def main() -> None:
    use_threads(cores())
    with tempfile.TemporaryDirectory() as scratch:
        for motion in ("none", "one_hinge"):
            for snr in SNRS:
                case = Case(Path(scratch) / f"{motion}_{snr}", motion, snr)
                print(f"\n{'rigid' if motion == 'none' else 'true motion'}, signal-to-noise {snr}")
                print(f"{'passes':>8}{'FSC with the truth':>20}{'expected, off by':>18}")
                ours: list[tuple[float, float]] = []
                solve(
                    case.problem,
                    max_iterations=ITERATIONS,
                    tolerance=0.01,
                    each=lambda state, case=case, ours=ours: ours.append(  # type: ignore[misc]
                        case.scores(unfiltered_maps(case.problem, state))
                    ),
                )
                for passes, (truth, off) in enumerate(ours, start=2):
                    print(f"{passes:8}{truth:20.4f}{off:18.3f}  conjugate gradients, prior", flush=True)
                plain = [case.scores(list(maps)) for maps in zip(*map(plain_lbfgs, case.alone), strict=False)]
                for passes, (truth, off) in enumerate(plain, start=1):
                    if passes in (2, 3, 4, 5, 6, 8, 12, len(plain)):
                        print(f"{passes:8}{truth:20.4f}{off:18.3f}  L-BFGS", flush=True)
                best = max(range(len(plain)), key=lambda number: plain[number][0])
                enough = next((k for k, (truth, _) in enumerate(ours, start=2) if truth >= plain[best][0]), None)
                print(
                    f"best of L-BFGS {plain[best][0]:.4f}, after {best + 1} passes; as good after {enough}", flush=True
                )


if __name__ == "__main__":
    main()
