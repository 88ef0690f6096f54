"""The flow at the atoms of a model: forth from the canonical frame, back into it, and with rigid residues.

Within a cell of the mesh the flow is affine (barycentric). Its strain would stretch bonds; so each residue moves as a
rigid body (Kabsch 1976), and where residues are bound the two are made to agree on the atoms of the bond, in least
squares with the flow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import bsr_array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from flex_job.atomic_model import AtomicModel
from flex_job.mesh.points import MeshPoints
from flex_job.mesh.tetmesh import TetMesh, cell_volumes

__all__ = ["RigidResidues", "taken_back"]

FLAT = 1e-3  # of its volume at rest: a cell that has less is folded
APART_A = 3.0  # from the median of the neighbours: where bodies turn, points differ by less within a few angstroms
NEAR_A, NEIGHBOURS, FEWEST, SWEEPS = 10.0, 60, 6, 3
AGREEMENT = 100.0  # weight of two residues' agreement on an atom of their bond; the flow's weight is 1 per atom
STEPS = 4  # Gauss-Newton; turns between bound residues are small
DAMPING = 1e-3  # A^2: residues of one or two atoms have no orientation

Floats = NDArray[np.float64]


def taken_back(
    mesh: TetMesh, points_A: Floats, vertices_A: Floats, thread: Floats | None = None
) -> tuple[Floats, NDArray[np.bool_]]:
    """Where `points_A` (n, 3), of the frame whose vertices are at `vertices_A` (V, 3), are in the canonical frame of
    `mesh`; and which of them (n,) tell that by themselves.

    Where the flow folds the mesh, or runs one part into another, a point may be found in a wrong cell. Such points move
    otherwise than those around them, and are taken to go with these, as one body. `thread` (n,) in angstroms keeps
    those apart that are near without being neighbours, as two chains are (`AtomicModel.thread`).
    """
    vertices = np.asarray(vertices_A, dtype=np.float64)
    whole = np.flatnonzero(cell_volumes(vertices, mesh.cells) > FLAT * cell_volumes(mesh.vertices_A, mesh.cells))
    frame = replace(
        mesh,
        vertices_A=vertices,
        cells=mesh.cells[whole],
        rigidity=mesh.rigidity[whole],
        segment=mesh.segment[whole],
    )
    back = MeshPoints.at(frame, points_A).moved(points_A, mesh.vertices_A)
    places = np.column_stack([points_A, np.zeros(len(points_A)) if thread is None else thread])
    _, near = cKDTree(places).query(places, k=NEIGHBOURS, distance_upper_bound=NEAR_A)
    counted = (near < len(points_A)).sum(axis=1) >= FEWEST
    surest = np.ones(len(points_A), dtype=bool)
    for _ in range(SWEEPS):  # a wrong region is put right from its rim
        shift = np.concatenate([back - points_A, np.full((1, 3), np.nan)])  # the last stands for no neighbour
        apart = np.linalg.norm(shift[:-1] - np.nanmedian(shift[near], axis=1), axis=1)
        sure = (apart <= APART_A) | ~counted
        surest &= sure
        for n in np.flatnonzero(~sure):
            others = near[n][near[n] < len(points_A)]
            others = others[sure[others]]
            if len(others) >= FEWEST:
                here, there = points_A[others].mean(axis=0), back[others].mean(axis=0)
                turn, _ = Rotation.align_vectors(back[others] - there, points_A[others] - here)
                back[n] = there + turn.apply(points_A[n] - here)
    return back, surest


class RigidResidues:
    """Fits a rigid motion of every residue to displaced atoms, bound residues in agreement with each other."""

    def __init__(self, model: AtomicModel) -> None:
        self.residue, count = model.residue, model.residues
        self.size = np.bincount(self.residue, minlength=count).astype(float)
        self.middle = self._sums(model.positions_A) / self.size[:, None]
        self.arm = model.positions_A - self.middle[self.residue]
        # what a pair of bound residues has to agree on: the bond's atoms, and those that they are bound to
        bonds = model.bonds
        across = self.residue[bonds[:, 0]] != self.residue[bonds[:, 1]]
        near: dict[int, list[int]] = {}
        for a, b in bonds[~across].tolist():
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
        shared = {
            (int(self.residue[a]), int(self.residue[b]), atom)
            for a, b in bonds[across].tolist()
            for atom in (a, b, *near.get(a, ()), *near.get(b, ()))
        }
        one, other, atom = np.array(sorted(shared), dtype=np.int64).reshape(-1, 3).T
        self.pair = one, other
        place = model.positions_A[atom]
        self.lever = place - self.middle[one], place - self.middle[other]

    def fitted(self, targets_A: Floats) -> Floats:
        """Positions (n, 3) with every residue rigid, nearest to `targets_A` (n, 3)."""
        mean = self._sums(targets_A) / self.size[:, None]
        turn, middle = self._kabsch(targets_A - mean[self.residue]), mean.copy()
        for _ in range(STEPS if len(self.pair[0]) else 0):
            step = self._step(turn, middle, targets_A)
            turn = Rotation.from_rotvec(step[:, :3]).as_matrix() @ turn
            middle = middle + step[:, 3:]
        return middle[self.residue] + np.einsum("nab,nb->na", turn[self.residue], self.arm)

    def _sums(self, values: Floats) -> Floats:
        """(R, ...) sums over each residue's atoms of `values` (n, ...)."""
        flat = values.reshape(len(values), -1)
        sums = [np.bincount(self.residue, weights=column, minlength=len(self.size)) for column in flat.T]
        return np.stack(sums, axis=1).astype(np.float64).reshape(-1, *values.shape[1:])

    def _kabsch(self, arms: Floats) -> Floats:
        """(R, 3, 3) the rotation of each residue that takes its atoms' arms nearest to `arms` (n, 3)."""
        left, _, right = np.linalg.svd(self._sums(arms[:, :, None] * self.arm[:, None, :]))
        left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]
        return left @ right

    def _step(self, turn: Floats, middle: Floats, targets_A: Floats) -> Floats:
        """(R, 6) further turns (rotation vectors) and shifts of the residues: one Gauss-Newton step."""
        count = len(middle)
        arm = np.einsum("nab,nb->na", turn[self.residue], self.arm)
        jacobian = _jacobian(arm)
        away = targets_A - middle[self.residue] - arm
        diagonal = self._sums(np.swapaxes(jacobian, 1, 2) @ jacobian)
        gradient = self._sums(np.einsum("nai,na->ni", jacobian, away))
        diagonal[:, range(3), range(3)] += DAMPING
        one, other = self.pair
        levers = [np.einsum("pab,pb->pa", turn[r], lever) for r, lever in zip(self.pair, self.lever, strict=True)]
        jacobians = [_jacobian(lever) for lever in levers]
        apart = middle[other] + levers[1] - middle[one] - levers[0]
        blocks, rows, columns = [diagonal], [np.arange(count)], [np.arange(count)]
        for a, (r, j) in enumerate(zip(self.pair, jacobians, strict=True)):
            signed = np.einsum("pai,pa->pi", j, apart) * (1 - 2 * a)
            for k in range(6):
                gradient[:, k] += AGREEMENT * np.bincount(r, weights=signed[:, k], minlength=count)
            for b, (s, i) in enumerate(zip(self.pair, jacobians, strict=True)):
                blocks.append(AGREEMENT * (1 if a == b else -1) * np.swapaxes(j, 1, 2) @ i)
                rows.append(r)
                columns.append(s)
        matrix = _block_matrix(np.concatenate(blocks), np.concatenate(rows), np.concatenate(columns), count)
        symmetric = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
        return splu(matrix.tocsc(), **symmetric).solve(gradient.ravel()).reshape(count, 6)


def _jacobian(arm: Floats) -> Floats:
    """(n, 3, 6) how points on `arm` (n, 3) go with a small turn and a shift: -[arm]x and the identity."""
    found = np.zeros((len(arm), 3, 6))
    x, y, z = arm.T
    found[:, 0, 1], found[:, 0, 2], found[:, 1, 2] = z, -y, x
    found[:, 1, 0], found[:, 2, 0], found[:, 2, 1] = -z, y, -x
    found[:, range(3), range(3, 6)] = 1
    return found


def _block_matrix(blocks: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64], count: int) -> bsr_array:
    """Sparse (6 count, 6 count) with the sums of `blocks` (m, 6, 6) at their block rows and columns."""
    order = np.lexsort((columns, rows))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(rows[order]) != 0) | (np.diff(columns[order]) != 0)
    starts = np.flatnonzero(new)
    summed = np.add.reduceat(blocks[order], starts, axis=0)
    pointer = np.concatenate([[0], np.cumsum(np.bincount(rows[order][starts], minlength=count))])
    return bsr_array((summed, columns[order][starts], pointer), shape=(6 * count, 6 * count))
