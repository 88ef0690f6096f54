"""Domains of any complex that turn about where they touch the rest, each by its own latent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flex_job.simulation.atoms import Beads
from flex_job.simulation.motion import Conformations, Hinge

__all__ = ["Domain", "complex_motion", "domain_hinge", "parse_domains"]

CONTACT_A = 10.0  # beads of a domain that lie as near to the rest touch it
BEND_A = 15.0  # over this distance from the rest a domain takes up its angle, so that the contact bends and is not torn
PART = re.compile(r"(?P<chain>[A-Za-z0-9]+)(\((?P<first>\d+)-(?P<last>\d+)\))?")


@dataclass(frozen=True)
class Domain:
    """What turns together by up to `amplitude_deg` either way: `parts` are chains, each whole (None) or the residues
    (first, last) of it, by the file's own numbers."""

    parts: tuple[tuple[str, tuple[int, int] | None], ...]
    amplitude_deg: float

    def members(self, beads: Beads) -> NDArray[np.bool_]:
        """(n,) the domain's beads. Raises ValueError for a part that has none."""
        chosen = np.zeros(len(beads), dtype=bool)
        for chain, limits in self.parts:
            part = beads.chain == chain
            if limits is not None:
                part &= (beads.residue >= limits[0]) & (beads.residue <= limits[1])
            if not part.any():
                where = "" if limits is None else f", residues {limits[0]} to {limits[1]}"
                known = ", ".join(np.unique(beads.chain))
                raise ValueError(f"no residue of chain {chain}{where}; the structure has chains {known}")
            chosen |= part
        return chosen


def parse_domains(text: str) -> tuple[Domain, ...]:
    """Domains such as `A+B:15; C(20-110):10`: chains, with or without a range of residues, and degrees.

    Raises ValueError, naming what was given, for anything else.
    """
    domains = []
    for piece in filter(None, (part.strip() for part in text.split(";"))):
        chains, colon, degrees = piece.rpartition(":")
        matches = [PART.fullmatch(part.strip()) for part in chains.split("+")]
        try:
            amplitude = float(degrees)
        except ValueError:
            amplitude = -1.0
        if not colon or not all(matches) or not 0 < amplitude <= 90:
            raise ValueError(
                f"domain {piece!r}; expected chains and the angle that they turn by either way, in degrees up to 90, "
                "as in A+B:15 or C(20-110):10, domains separated by semicolons"
            )
        parts = tuple(
            (m["chain"], None if m["first"] is None else (int(m["first"]), int(m["last"]))) for m in matches if m
        )
        domains.append(Domain(parts, amplitude))
    return tuple(domains)


def domain_hinge(beads: Beads, members: NDArray[np.bool_], amplitude_deg: float) -> Hinge:
    """The hinge of the beads `members` (n,): its pivot is where they touch the rest, its axis normal to the plane of
    pivot, domain and rest, so that the domain swings to and from the body.

    Raises ValueError where nothing, or everything, is in the domain.
    """
    if not members.any() or members.all():
        raise ValueError(f"a domain of {members.sum()} of {len(beads)} beads; expected some, and others that stay")
    xyz, mass = beads.positions_A, beads.amplitude
    distance, _ = cKDTree(xyz[~members]).query(xyz[members])
    pivot = xyz[members][distance <= max(CONTACT_A, distance.min())].mean(axis=0)
    outward = np.average(xyz[members], axis=0, weights=mass[members]) - pivot
    stem = np.average(xyz[~members], axis=0, weights=mass[~members]) - pivot
    axis = np.cross(outward, stem)
    if np.linalg.norm(axis) < 1e-3 * np.linalg.norm(outward) * np.linalg.norm(stem):  # in line: any axis across will do
        axis = np.cross(outward, np.eye(3)[np.argmin(np.abs(outward))])
    rise = np.clip(distance / BEND_A, 0.0, 1.0)
    weight = np.zeros(len(beads))
    weight[members] = rise * rise * (3 - 2 * rise)
    return Hinge(pivot, axis / np.linalg.norm(axis), weight, float(np.deg2rad(amplitude_deg)))


def complex_motion(beads: Beads, domains: Sequence[Domain]) -> Conformations:
    """Conformations of `beads`: every domain turns on its own. Raises ValueError where two domains share residues."""
    members = [domain.members(beads) for domain in domains]
    shared = np.sum(members, axis=0) > 1 if members else np.zeros(len(beads), dtype=bool)
    if shared.any():
        raise ValueError(f"domains share {shared.sum()} residues of chain {beads.chain[shared][0]}; expected none")
    return Conformations(
        beads,
        tuple(
            domain_hinge(beads, chosen, domain.amplitude_deg) for chosen, domain in zip(members, domains, strict=True)
        ),
    )
