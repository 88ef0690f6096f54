"""Our local resolution against RELION's `relion_postprocess --locres` on the same half-maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flex_job.local_resolution import local_resolution
from flex_job.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.relion

BOX, PIXEL = 44, 4.0
EDGE_A = 25.0


def half_maps() -> tuple[Volume, Volume, Volume]:
    """A molecule fine at one end and coarse at the other, noise everywhere, and its mask."""
    rng = np.random.default_rng(3)
    k = np.fft.fftfreq(BOX, PIXEL)
    k2 = k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.fft.rfftfreq(BOX, PIXEL) ** 2
    transform = np.fft.rfftn(rng.standard_normal((BOX,) * 3) + 0.3)
    fine, coarse = (np.fft.irfftn(transform * np.exp(-b / 4 * k2), s=(BOX,) * 3, axes=(0, 1, 2)) for b in (200, 4000))
    axis = np.arange(BOX) - BOX // 2
    radius = np.sqrt((axis[:, None, None] / 1.2) ** 2 + axis[None, :, None] ** 2 + axis**2)
    blob, mask = (np.clip(size - radius, 0, 1) for size in (12, 14))
    share = 1 / (1 + np.exp(-axis / 3))[:, None, None]
    signal = blob * (share * fine + (1 - share) * coarse)
    first, second = (signal + 0.3 * rng.standard_normal(signal.shape) for _ in range(2))
    return tuple(Volume(data.astype(np.float32), PIXEL) for data in (first, second, mask))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def relions(tmp_path_factory: pytest.TempPathFactory, run_relion: Any) -> list[np.ndarray]:
    """RELION's maps for two seeds of its random phases."""
    folder: Path = tmp_path_factory.mktemp("locres")
    for name, volume in zip(("half1", "half2"), half_maps(), strict=False):
        write_volume(folder / f"{name}.mrc", volume.data, PIXEL)
    maps = []
    for seed in (1, 2):
        where = ("--i", "half1.mrc", "--i2", "half2.mrc", "--o", f"./seed{seed}")
        run_relion("relion_postprocess", *where, "--angpix", PIXEL, "--locres", "--random_seed", seed, cwd=folder)
        maps.append(read_volume(folder / f"seed{seed}_locres.mrc").data)
    return maps


def differences(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> tuple[float, float]:
    """Median and 95th percentile, angstroms."""
    off = np.abs(a - b)[inside]
    return float(np.median(off)), float(np.quantile(off, 0.95))


def test_as_near_to_relions_map_as_two_of_relions_are_to_each_other(relions):
    first, second, mask = half_maps()
    inside = mask.data > 0.5
    found = local_resolution(first, second, mask).volume.data
    assert np.ptp(np.quantile(found[inside], (0.05, 0.95))) > 4  # there is something to agree on
    own = differences(*relions, inside)
    for each in relions:
        median, most = differences(found, each, inside)
        assert median < max(2 * own[0], 0.1) and most < max(1.5 * own[1], 0.5), (own, median, most)


def test_other_spheres_do_not_agree(relions):
    """Negative control: spheres of another size give another map."""
    first, second, mask = half_maps()
    inside = mask.data > 0.5
    wrong = local_resolution(first, second, mask, sampling_A=1.6 * EDGE_A).volume.data
    assert differences(wrong, relions[0], inside)[0] > 3 * differences(*relions, inside)[0]
