"""Our reconstruction without motion is RELION's: the same particles through `relion_reconstruct --ctf` and through us.

Two optics groups of one extent (RELION scales a group by the square of the map's extent over the images') differ in
pixel size, box, voltage, tilt and magnification; shifts, astigmatism and phase shifts are random. The signal is strong
because the two programs weight noise differently, and what is tested is what they do to the signal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile
from numpy.typing import NDArray

from flex_job.consensus import Consensus, OpticsGroup
from flex_job.events import Events
from flex_job.fsc import fsc_masked
from flex_job.prep import prepare, restore
from flex_job.reconstruct import reconstruct
from flex_job.volume import Volume, read_volume
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from job_specs.parameters import PrepParameters, ReconstructParameters

pytestmark = [pytest.mark.relion, pytest.mark.slow]

BOX, PIXEL = 64, 4.0
PARTICLES, FEW = 800, 200
TURNED = ((1.02, 0.05), (-0.03, 0.985))
GROUPS = (
    OpticsGroup("coarse", BOX, PIXEL, 300.0, 2.7, 0.1, beam_tilt_mrad=(12.0, -8.0)),
    OpticsGroup("fine", 80, 3.2, 200.0, 2.0, 0.07, beam_tilt_mrad=(-7.0, 6.0), magnification=TURNED),
)
HALF_NYQUIST, MOST = BOX // 4, int(0.8 * BOX / 2)


@dataclass(frozen=True)
class Case:
    """A simulated project, RELION's maps of its first half-set and of the few particles that controls are run on."""

    folder: Path
    consensus: Consensus
    truth: Volume
    half1: Volume
    few: Volume

    @property
    def mask(self) -> NDArray[np.float32]:
        assert self.consensus.mask is not None
        return self.consensus.mask.data

    def agreement(self, a: Volume, b: Volume) -> NDArray[np.float64]:
        """FSC of two maps inside the mask, (BOX // 2,), from shell 1."""
        return fsc_masked(a.data, b.data, self.mask)[1:]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, run_relion: Any) -> Case:
    folder = tmp_path_factory.mktemp("reconstruct")
    project = simulate_project(
        folder,
        motion="none",
        particles=PARTICLES,
        optics=GROUPS,
        snr=8.0,
        noise="coloured",
        phase_shift_deg=(20.0, 90.0),
        astigmatism_A=4500.0,
        seed=5,  # its first particle is of the first group: RELION takes its box from one, its pixel from the other
    )
    star = project.particles_star
    tables = starfile.read(star)
    starfile.write({**tables, "particles": tables["particles"][:FEW]}, folder / "few.star")
    maps = []
    for name, source, flags in (("half1", star, ("--subset", 1)), ("few", "few.star", ())):
        run_relion("relion_reconstruct", "--i", source, "--o", f"{name}.mrc", "--ctf", "--j", 2, *flags, cwd=folder)
        maps.append(read_volume(folder / f"{name}.mrc"))
        assert (maps[-1].box, maps[-1].pixel_size_A) == (BOX, PIXEL)
    truth = read_volume(folder / "truth" / "consensus.mrc")
    return Case(folder, read_consensus(star), truth, *maps)


def our_maps(consensus: Consensus, folder: Path, contrast: str = "auto", iterations: int = 40) -> tuple[Volume, Volume]:
    """Both half-maps, without motion."""
    assert consensus.mask is not None
    cache, record = folder / "cache.f16", folder / "prep.npz"
    prepare(consensus, consensus.mask, BOX, PrepParameters(contrast=contrast), cache, record, Events())
    stack, _ = restore(consensus, BOX, cache, record)
    support = Volume((consensus.mask.data > 0.01).astype(np.float32), PIXEL)
    return reconstruct(stack, support, None, ReconstructParameters(max_iterations=iterations), Events()).maps


def test_half_map_is_relions(case: Case, tmp_path: Path) -> None:
    first, second = our_maps(case.consensus, tmp_path)
    curve = case.agreement(first, case.half1)
    assert curve[:HALF_NYQUIST].min() > 0.99, curve
    assert curve[:MOST].min() > 0.95, curve
    ours, relions = (case.agreement(which, case.truth)[:MOST].mean() for which in (first, case.half1))
    assert ours > relions - 1e-3
    # it is of RELION's half of the particles: the other half shares the signal but not the noise
    assert (curve > case.agreement(second, case.half1))[HALF_NYQUIST:MOST].all()


def changed_optics(consensus: Consensus, **changes: Any) -> Consensus:
    """`changes` are functions of an optics group."""
    groups = [replace(g, **{name: change(g) for name, change in changes.items()}) for g in consensus.optics]
    return replace(consensus, optics=tuple(groups))


def test_flipped_conventions_disagree_with_relion(case: Case, tmp_path: Path) -> None:
    right = case.consensus.select(np.arange(FEW))

    def lowest(consensus: Consensus) -> float:
        """Lowest correlation up to 0.8 of Nyquist."""
        first, second = our_maps(consensus, tmp_path, contrast="keep", iterations=2)
        return float(case.agreement(Volume(first.data + second.data, PIXEL), case.few)[:MOST].min())

    assert lowest(right) > 0.92
    wrong = {
        "rotations transposed": replace(right, rotations=right.rotations.transpose(0, 2, 1)),
        "shift of the other sign": replace(right, origins_A=-right.origins_A),
        "CTF of the other sign": replace(right, ctf_scale=-right.ctf_scale),
        "overfocus": replace(right, defocus_u_A=-right.defocus_u_A, defocus_v_A=-right.defocus_v_A),
        "astigmatism turned the other way": replace(right, defocus_angle_rad=-right.defocus_angle_rad),
        "phase shift of the other sign": replace(right, phase_shift_rad=-right.phase_shift_rad),
        "beam tilt of the other sign": changed_optics(
            right, beam_tilt_mrad=lambda g: (-g.beam_tilt_mrad[0], -g.beam_tilt_mrad[1])
        ),
        "magnification transposed": changed_optics(
            right, magnification=lambda g: tuple(zip(*g.magnification, strict=True))
        ),
    }
    for what, consensus in wrong.items():
        assert lowest(consensus) < 0.87, what
