"""Packed coefficients: which are listed, in what order, and that half of them stand for the whole plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flex_job.band import Band


def images_of(count: int, box: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, box, box)))


def low_passed(images: torch.Tensor, limit: float) -> torch.Tensor:
    """Without their mean and without all waves from `limit` per box on."""
    box = images.shape[-1]
    k = torch.fft.fftfreq(box, 1 / box)
    radius = torch.hypot(k[:, None], k)
    return torch.fft.ifft2(torch.fft.fft2(images) * ((radius > 0) & (radius < limit))).real


# -- the list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1.5, 4.0, 7.3, 16.0])
def test_every_coefficient_of_the_open_disc_is_listed_once_up_to_conjugation(limit: float) -> None:
    band = Band.below(limit)
    listed = list(zip(band.ky.tolist(), band.kx.tolist(), strict=True))
    both = listed + [(-y, -x) for y, x in listed]
    reach = range(-20, 21)
    disc = {(y, x) for y in reach for x in reach if 0 < y * y + x * x < limit**2}
    assert len(set(both)) == len(both) == 2 * len(band) and set(both) == disc
    assert (band.kx >= 0).all()


def test_waves_on_the_limit_are_outside() -> None:
    """At half a box they are their own conjugates, and a real image's are not complex."""
    on = Band.below(5.0)
    listed = set(zip(on.ky.tolist(), on.kx.tolist(), strict=True))
    assert not listed & {(0, 5), (5, 0), (3, 4), (4, 3), (-3, 4)}
    beyond = Band.below(5.001)
    assert set(zip(beyond.ky.tolist(), beyond.kx.tolist(), strict=True)) - listed == {
        (0, 5), (5, 0), (3, 4), (-3, 4), (4, 3), (-4, 3)
    }  # fmt: skip


@pytest.mark.parametrize("lower, higher", [(1.5, 3.0), (4.0, 4.2), (7.3, 16.0), (12.8, 40.0)])
def test_a_lower_band_is_the_beginning_of_a_higher_one(lower: float, higher: float) -> None:
    low, high = Band.below(lower), Band.below(higher)
    assert len(low) < len(high)
    for name in ("ky", "kx", "radius"):
        assert torch.equal(getattr(high, name)[: len(low)], getattr(low, name)), name
    assert (high.radius[len(low) :] >= lower).all()  # and it is all of the beginning


def test_order_is_by_radius_and_shells_are_the_nearest_whole_numbers() -> None:
    band = Band.below(11.5)
    exact = np.hypot(band.ky.numpy(), band.kx.numpy())
    assert (np.diff(band.radius.numpy()) >= 0).all()
    np.testing.assert_allclose(band.radius.numpy(), exact, rtol=1e-6)
    assert (np.abs(band.shells.numpy() - exact) <= 0.5).all() and band.shells.dtype == torch.int64
    keys = list(zip(np.rint(exact**2), band.ky.tolist(), band.kx.tolist(), strict=True))
    assert keys == sorted(keys)  # the cache on disk depends on the order of ties, too


@pytest.mark.parametrize("box", [16, 21])
def test_places_in_the_half_plane_are_those_of_rfft2(box: int) -> None:
    band = Band.below(box / 2)
    ky = torch.fft.fftfreq(box, 1 / box).round().long()[:, None].expand(box, box // 2 + 1)
    kx = torch.arange(box // 2 + 1).expand(box, box // 2 + 1)
    where = band.flat_index(box)
    assert torch.equal(ky.reshape(-1)[where], band.ky) and torch.equal(kx.reshape(-1)[where], band.kx)


def test_too_high_a_band_for_a_box_is_refused() -> None:
    band = Band.below(8.1)
    for use in (
        lambda: band.flat_index(16),
        lambda: band.pack(torch.zeros(16, 9)),
        lambda: band.spread(torch.zeros(len(band), dtype=torch.complex64), 16),
    ):
        with pytest.raises(ValueError, match="16 pixels carry frequencies below 8.0 waves per box; asked for 8.1"):
            use()
    assert len(band.flat_index(18)) == len(band)
    assert len(Band.below(8.0).flat_index(16)) == len(Band.below(8.0))


def test_a_wave_has_the_same_coefficient_at_every_box() -> None:
    """What a larger image's transform holds below the limit is the smaller image's, in its place."""
    band = Band.below(8.0)
    at = (band.ky == -2) & (band.kx == 3)
    packed = []
    for box in (16, 24):
        row, column = np.indices((box, box)) - box // 2
        wave = torch.from_numpy(np.cos(2 * np.pi * (3 * column - 2 * row) / box))
        packed.append(band.pack(torch.fft.rfft2(torch.fft.ifftshift(wave), norm="forward")))
    torch.testing.assert_close(packed[0], packed[1])
    assert float(packed[0][at].abs()) == pytest.approx(2**-0.5) and float(packed[0][~at].abs().max()) < 1e-12


# -- pack and spread ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box, limit", [(16, 8.0), (16, 5.0), (21, 10.5)])
def test_packed_sum_of_squares_is_that_of_the_image(box: int, limit: float) -> None:
    """Parseval: what counts half of the plane in sqrt(2)-fold coefficients counts all of it."""
    images, band = images_of(3, box), Band.below(limit)
    packed = band.pack(torch.fft.rfft2(images, norm="ortho"))
    assert packed.shape == (3, len(band))
    total = torch.view_as_real(packed).square().sum((1, 2))
    torch.testing.assert_close(total, low_passed(images, limit).square().sum((1, 2)))
    # Negative control: the waves left out, at the corners and in the mean, hold a part.
    assert (total < 0.99 * images.square().sum((1, 2))).all()


def test_real_and_imaginary_parts_of_white_noise_have_unit_variance() -> None:
    """On the axis kx = 0, too, where the half plane holds both of k and -k."""
    band = Band.below(8.0)
    packed = torch.view_as_real(band.pack(torch.fft.rfft2(images_of(4000, 16), norm="ortho")))
    variance = packed.square().mean(0)
    assert float((variance - 1).abs().max()) < 6 * (2 / 4000) ** 0.5
    assert float((variance.mean() - 1).abs()) < 0.01
    assert float((packed[..., 0] * packed[..., 1]).mean(0).abs().max()) < 6 / 4000**0.5


@pytest.mark.parametrize("box", [16, 24, 17])
def test_packing_what_was_spread_gives_it_back(box: int) -> None:
    band = Band.below(7.9)
    rng = np.random.default_rng(1)
    packed = torch.from_numpy(rng.normal(size=(2, len(band))) + 1j * rng.normal(size=(2, len(band))))
    plane = band.spread(packed, box)
    assert plane.shape == (2, box, box // 2 + 1)
    torch.testing.assert_close(band.pack(plane), packed * 2**0.5)
    # The half plane is that of a real image: its inverse transform loses nothing, on the axis kx = 0 least of all.
    torch.testing.assert_close(torch.fft.rfft2(torch.fft.irfft2(plane, s=(box, box))), plane)
    without = plane.clone()
    without[:, box // 2 + 1 :, 0] = 0
    assert not torch.allclose(torch.fft.rfft2(torch.fft.irfft2(without, s=(box, box))), without)


@pytest.mark.parametrize("box, limit", [(16, 8.0), (16, 4.5), (15, 7.5)])
def test_spread_gives_the_gradient_of_a_product_with_packed_coefficients(box: int, limit: float) -> None:
    """irfft2(spread(a) / sqrt(2), norm="forward") is the gradient of <pack(rfft2(image)), a>: autograd says the same,
    and so does the inner product with another image (a linear function is its gradient's product)."""
    band, rng = Band.below(limit), np.random.default_rng(2)
    a = torch.from_numpy(rng.normal(size=len(band)) + 1j * rng.normal(size=len(band)))
    image, other = images_of(2, box)
    image.requires_grad_()

    def product(of: torch.Tensor) -> torch.Tensor:
        packed = band.pack(torch.fft.rfft2(of))
        return (torch.view_as_real(packed) * torch.view_as_real(a)).sum()

    (expected,) = torch.autograd.grad(product(image), image)
    found = torch.fft.irfft2(band.spread(a, box) / 2**0.5, s=(box, box), norm="forward")
    torch.testing.assert_close(found, expected)
    assert float(product(other)) == pytest.approx(float((found * other).sum()), rel=1e-10)


def test_coefficients_do_not_depend_on_the_box() -> None:
    """Of the same waves on finer and coarser grids, as densities: divided by the number of pixels."""
    limit, band = 5.5, Band.below(5.5)
    coarse = low_passed(images_of(2, 12), limit)
    reference = band.pack(torch.fft.rfft2(coarse)) / 12**2
    for box in (16, 30, 31):
        finer = _resample(coarse, box)
        found = band.pack(torch.fft.rfft2(finer)) / box**2
        torch.testing.assert_close(found, reference)
        assert not torch.allclose(band.pack(torch.fft.rfft2(finer.flip(-1))) / box**2, reference)


def _resample(images: torch.Tensor, box: int) -> torch.Tensor:
    """The trigonometric polynomials through the images' pixels, wave by wave, at the pixels of another grid."""
    old = images.shape[-1]
    spectrum = torch.fft.fft2(images)
    k = torch.fft.fftfreq(old, 1 / old, dtype=torch.float64)
    waves: NDArray[np.complex128] = np.exp(2j * np.pi * np.outer(np.arange(box) / box, k.numpy()))
    along = torch.from_numpy(waves)
    return (along @ spectrum @ along.T).real / old**2


def test_bands_are_made_once_and_kept() -> None:
    assert Band.below(6.0) is Band.below(6.0)
    assert Band.below(6.0) is not Band.below(6.5)
