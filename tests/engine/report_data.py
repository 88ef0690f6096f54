"""Made-up data for a whole report: a molecule of two blobs, one of which moves."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import torch

from flex_job.atomic_model import AtomicModel, read_atomic_model
from flex_job.choose import Choice, Tried
from flex_job.flow import FlowGenerator
from flex_job.fsc import FscCurves
from flex_job.mesh import TetMesh
from flex_job.model import FlexModel
from flex_job.report import MeanImages, ReportData, Stage
from flex_job.resolution import MaskFsc, ModelFsc, Resolution
from flex_job.train import HISTORY
from flex_job.volume import Volume

BOX, PIXEL = 32, 4.0
RNG = np.random.default_rng(0)


def grid_A(box: int = BOX, pixel: float = PIXEL) -> np.ndarray:
    """(z, y, x, 3): xyz in angstrom."""
    axis = (np.arange(box) - box // 2) * pixel
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)[..., ::-1]


def blob(centre, width, box: int = BOX, pixel: float = PIXEL) -> np.ndarray:
    """A Gaussian at `centre` (xyz, A), `width` (3,) standard deviations."""
    return np.exp(-0.5 * (((grid_A(box, pixel) - centre) / width) ** 2).sum(axis=-1)).astype(np.float32)


def molecule(arm: float = 0.0, box: int = BOX, pixel: float = PIXEL) -> np.ndarray:
    return blob([-8, 0, 0], [14, 7, 6], box, pixel) + blob([16, 10 + arm, 0], [6, 9, 5], box, pixel)


def curves(resolution_A: float, box: int = BOX, pixel: float = PIXEL) -> FscCurves:
    """Curves whose corrected one falls through 0.5 at `resolution_A`."""
    frequency = np.arange(box // 2 + 1) / (box * pixel)
    curve = 1 / (1 + np.exp((frequency - 1 / resolution_A) * 150))
    return FscCurves(curve * 0.9, curve, 0.1 * curve, curve, frequency, 5)


def mesh() -> TetMesh:
    """One cube of 40 A cut into five tetrahedra."""
    corners = np.array([[x, y, z] for x in (-20, 20) for y in (-20, 20) for z in (-20, 20)], float)
    cells = np.array([[0, 1, 2, 4], [3, 1, 7, 2], [5, 1, 4, 7], [6, 2, 7, 4], [1, 2, 4, 7]])
    edges = corners[cells[:, 1:]] - corners[cells[:, :1]]
    turned = np.linalg.det(edges) < 0
    cells[turned] = cells[turned][:, [1, 0, 2, 3]]
    return TetMesh.plain(corners, cells.astype(np.int32))


def full_data(latent_dims: int = 2, box: int = BOX, pixel: float = PIXEL) -> ReportData:
    n = 400
    map_ = Volume(molecule(0, box, pixel), pixel)
    mask = Volume(np.clip(map_.data * 4, 0, 1), pixel)
    motion = np.where(mask.data > 0.05, 5 * (grid_A(box, pixel)[..., 0] > 8), np.nan).astype(np.float32)
    frequency = curves(14.0, box, pixel).frequency_per_A
    return ReportData(
        title="A test & its <molecule>",
        job_folder="External/job002/",
        particles=(n // 2, n // 2),
        stages=[Stage("train", 70.0, 1500.0), Stage("report", 3.0)],
        consensus_map=map_,
        mask=mask,
        mesh=mesh(),
        latents=RNG.normal(size=(n, latent_dims)),
        latent_std=0.2 + 0.1 * RNG.random((n, latent_dims)),
        motion_A=Volume(motion, pixel),
        rigid=curves(14.0, box, pixel),
        flex=curves(11.0, box, pixel),
        rigid_map=map_,
        flex_map=map_,
        resolution=Resolution(
            masks=(MaskFsc("masks/arm.mrc", curves(20.0, box, pixel), curves(11.0, box, pixel)),),
            model=ModelFsc("model.pdb", *(curves(a, box, pixel).corrected for a in (15.0, 12.0)), frequency),
        ),
        rigid_locres=Volume(np.where(mask.data > 0.05, 12 + motion, 0).astype(np.float32), pixel),
        flex_locres=Volume(np.where(mask.data > 0.05, 10.0, 0).astype(np.float32), pixel),
        rigid_bfactor_A2=-80.0,
        flex_bfactor_A2=0.0,
        frames=[Volume(molecule(arm, box, pixel), pixel) for arm in (-12, 0, 12)],
        frame_latents=np.array([-1.5, 0.0, 1.5]),
        images=MeanImages(RNG.normal(size=(5, box, box)).astype(np.float32), np.linspace(-1, 1, 5), 20, pixel),
        training_limit_A=12.0,
        choice=Choice(
            1, 2.0, 0.8, 6, (Tried(1, 2.0, 0.8, 6, 14.0, 0.6, 0, 0), Tried(2, 2.0, 0.8, 6, 13.9, 0.6, -0.1, 0.1))
        ),
        learning={name: np.linspace(1.2, 1.0, 5) for name in HISTORY} | {"own": np.ones((5, latent_dims))},
        parameters={"train": {"latent_dims": latent_dims, "noise": 1.0, "scratch": ""}, "seed": 0},
        versions={"numpy": np.__version__},
        findings=["Converged."],
        notes=["contrast inverted"],
    )


def moving_model(data: ReportData) -> FlexModel:
    """A model whose latents bend the molecule by some angstroms, in a way that is not linear in them."""
    n, dims = data.latents.shape
    torch.manual_seed(0)
    flow = FlowGenerator(dims, 3, 8, torch.from_numpy(data.mesh.motion))
    torch.nn.init.normal_(flow.last.weight, std=4.0)
    return FlexModel(
        mesh=data.mesh,
        flow=flow,
        latents=data.latents.astype(np.float32),
        covariance=np.tile(0.05 * np.eye(dims, dtype=np.float32), (n, 1, 1)),
        map=data.flex_map,
        support=data.mask,
        history=np.zeros((0, 1)),
        history_names=("loss",),
    )


def two_chains(data: ReportData, path: Path) -> AtomicModel:
    """An atomic model of two chains of five residues, each with an atom beside its CA, along the molecule."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    middle = data.flex_map.box // 2 * data.flex_map.pixel_size_A
    for name, y in (("A", -4.0), ("B", 6.0)):
        chain = gemmi.Chain(name)
        for number in range(5):
            residue = gemmi.Residue()
            residue.name, residue.seqid = "ALA", gemmi.SeqId(number + 1, " ")
            for kind, x in (("N", -1.4), ("CA", 0.0)):
                atom = gemmi.Atom()
                atom.name, atom.element = kind, gemmi.Element(kind[0])
                atom.pos = gemmi.Position(middle - 8 + 4 * number + x, middle + y, middle)
                residue.add_atom(atom)
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    structure.write_pdb(str(path))
    return read_atomic_model(path, data.flex_map)
