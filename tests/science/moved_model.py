"""An atomic model moved along a refined motion against the true one: C-alpha errors and geometry. A JSON record."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from science.scores import latent_at

from flex_job.model import FlexModel
from flex_job.simulation.atoms import load_antibody
from flex_job.simulation.motion import antibody_motion
from integration.relion.job import run
from integration.relion.simulate import simulate_project

__all__ = ["moved_model", "true_places"]

STATES = (-1.0, 0.0, 1.0)
BOX, PIXEL_A = 64, 4.0
STAR, MASK = "Refine3D/job001/run_data.star", "MaskCreate/job002/mask.mrc"
USUAL = {"latent_dims": "1", "rigidity": "4", "band_end": "0.8", "epochs": "12"}


def moved_model(work: Path, particles: int, snr: float, seed: int = 3) -> dict[str, Any]:
    """Simulate the antibody with one hinge, train, and move its model from where it was built to both extreme states.

    `displacement_rms_A` is the true one between the extremes, `error_rms_A` that of the model's, over C-alpha atoms: of
    a model built in the middle state (`model_latents`), and of the same taken for one of the map that is moved.
    """
    work.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(work)
    try:
        simulate_project(
            Path(), motion="one_hinge", particles=particles, box=BOX, pixel_size_A=PIXEL_A, snr=snr, seed=seed
        )
        structure = gemmi.read_structure("truth/model.cif")
        job = "External/job010/"
        options = {"in_parts": STAR, "in_mask": MASK, **USUAL}
        assert run("train", {"o": job, **options}) == 0
        model, true = FlexModel.load(Path(job, "flex_model.pt")), np.load("truth/truth.npz")["latents"]
        at = [latent_at(model.latents, true, np.array([state]))[0] for state in STATES]
        Path("states.csv").write_text("\n".join(["flexLatent1", *(f"{z:.6f}" for z in at), ""]))
        truth, alpha = true_places(structure)
        moved = {"built_in_the_middle": {"model_frame": "1"}, "taken_for_canonical": {}}
        record: dict[str, Any] = {
            "particles": particles,
            "snr": snr,
            "seed": seed,
            "displacement_rms_A": rms(truth[2] - truth[0], alpha),
            "displacement_largest_A": float(np.linalg.norm(truth[2] - truth[0], axis=1)[alpha].max()),
        }
        for number, (name, extra) in enumerate(moved.items(), start=11):
            for rigid in ("yes", "no"):
                folder = f"External/job0{number}/"
                asked = {
                    "atomic_model": "truth/model.cif",
                    "latents": "states.csv",
                    "movie": "no",
                    "rigid_residues": rigid,
                }
                assert run("generate", {"o": folder, "in_model": job, **asked, **extra}) == 0
                found = gemmi.read_structure(f"{folder}frames.cif")
                places = [_places(found[frame]) for frame in range(len(STATES))]
                table = pd.read_csv(f"{folder}geometry.csv")
                record[f"{name}, {'rigid residues' if rigid == 'yes' else 'flow alone'}"] = {
                    "error_rms_A": rms(places[2] - places[0] - truth[2] + truth[0], alpha),
                    "error_at_extremes_A": [rms(places[k] - truth[k], alpha) for k in (0, 2)],
                    "worst_frame": table.drop(columns="frame").max().to_dict(),
                }
        return record
    finally:
        os.chdir(before)


def true_places(structure: gemmi.Structure) -> tuple[list[NDArray[np.float64]], NDArray[np.bool_]]:
    """Where the atoms (n, 3) are in each of STATES, in the file's frame; and which are C-alpha."""
    beads = load_antibody()
    hinge = antibody_motion(beads, "one_hinge").hinges[0]
    share = dict(zip(zip(beads.chain.tolist(), beads.residue.tolist(), strict=True), hinge.weight, strict=True))
    weight = np.array([share[chain.name, residue.label_seq or 0] for chain, residue, _ in _atoms(structure[0])])
    alpha = np.array([atom.name == "CA" for *_, atom in _atoms(structure[0])])
    rest = _places(structure[0]) - BOX // 2 * PIXEL_A
    moved = replace(hinge, weight=weight).displacement(rest, np.array(STATES))
    return [rest + each + BOX // 2 * PIXEL_A for each in moved], alpha


def rms(vectors: NDArray[np.float64], of: NDArray[np.bool_]) -> float:
    return float(np.sqrt((vectors[of] ** 2).sum(axis=1).mean()))


def _atoms(model: gemmi.Model) -> list[tuple[gemmi.Chain, gemmi.Residue, gemmi.Atom]]:
    return [(chain, residue, atom) for chain in model for residue in chain for atom in residue]


def _places(model: gemmi.Model) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for *_, atom in _atoms(model)])


if __name__ == "__main__":  # PYTHONPATH=tests python -m science.moved_model FOLDER [PARTICLES] [SNR] [SEED]
    folder, particles, snr, seed = [*sys.argv[1:], *["3500", "0.1", "3"][len(sys.argv) - 2 :]]
    print(json.dumps(moved_model(Path(folder), int(particles), float(snr), int(seed)), indent=1))
