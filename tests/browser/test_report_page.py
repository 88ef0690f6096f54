"""The report in a real browser: pictures are drawn, the surface moves with slider, landscape and button."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from browser.conftest import open_page
from engine.report_data import full_data, moving_model, two_chains
from PIL import Image
from playwright.sync_api import Browser, Page

from flex_job.report import write_report
from flex_job.report.moving import moving_surface

POINTS = "Array.from(document.getElementById('molecule').data[0].x)"
WIDE, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module", params=[1, 3], ids=["one latent", "three latents"])
def report(request, tmp_path_factory, browser: Browser) -> Iterator[tuple[int, Page]]:
    """The number of latents, and a page whose molecule moves, opened once for all tests."""
    data = full_data(request.param)
    folder = tmp_path_factory.mktemp("report")
    atoms = two_chains(data, folder / "two.pdb") if request.param > 1 else None
    moving = moving_surface(moving_model(data), data.flex_map, data.mask, atoms)
    data = replace(data, moving=moving, gains=np.linspace(-1, 3, len(data.latents)), cluster_centres=data.latents[:5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flex_job.report.pictures.WIDTH_PX", 80)
        patch.setattr("flex_job.report.html.DPI", 40)
        path = write_report(data, folder)[1]
    opened = open_page(browser, path.as_uri())
    opened.page.wait_for_function("document.getElementById('moving-told').textContent")
    yield request.param, opened.page
    opened.page.close()
    opened.check_silent()


def settled(page: Page, before: list[float]) -> np.ndarray:
    """The surface's points once they are no longer those `before`."""
    page.wait_for_function(f"(before) => {POINTS}.some((x, p) => x !== before[p])", arg=before)
    return np.array(page.evaluate(POINTS))


def set_slider(page: Page, number: int, share: float) -> None:
    page.evaluate(
        """([id, share]) => {
            const slider = document.getElementById(id);
            slider.value = (1 - share) * Number(slider.min) + share * Number(slider.max);
            slider.dispatchEvent(new Event("input"));
        }""",
        [f"moving-latent-{number}", share],
    )


def picture(page: Page, share: float) -> bytes:
    """The surface with the first latent's slider at a share of its range."""
    set_slider(page, 1, share)
    page.wait_for_timeout(500)
    return page.locator("#molecule").screenshot()


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_pictures_are_drawn_and_nothing_sticks_out(report: tuple[int, Page], size: tuple[int, int]):
    page = report[1]
    page.set_viewport_size({"width": size[0], "height": size[1]})
    wide = page.evaluate("Array.from(document.images).map((image) => image.naturalWidth)")
    assert len(wide) == 13 and min(wide) > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    molecule = page.locator("#molecule").bounding_box()
    assert molecule["x"] >= 0 and molecule["x"] + molecule["width"] <= size[0]


def test_the_slider_moves_the_surface(report: tuple[int, Page]):
    """There and beyond; what is told changes with it; and the canvas shows it, the same again for the same place."""
    page = report[1]
    first = picture(page, 0.0)
    low = np.array(page.evaluate(POINTS))
    assert "latent 1: -" in page.locator("#moving-told").text_content()
    set_slider(page, 1, 0.5)
    middle = settled(page, low.tolist())
    assert picture(page, 1.0) != first
    high = np.array(page.evaluate(POINTS))
    assert np.abs(high - low).max() > np.abs(middle - low).max() > 0.5
    assert picture(page, 0.0) == first


def test_pointing_at_the_landscape_goes_there(report: tuple[int, Page]):
    page = report[1]
    set_slider(page, 1, 1.0)
    page.wait_for_timeout(300)
    rest = page.evaluate(POINTS)
    box = page.locator("#landscape .nsewdrag").first.bounding_box()
    for step in (0.40, 0.45, 0.5):
        page.mouse.move(box["x"] + step * box["width"], box["y"] + step * box["height"])
    settled(page, rest)


def test_play_and_stop(report: tuple[int, Page]):
    page = report[1]
    button = page.locator("#moving-play")
    button.click()
    assert button.text_content() == "Stop"
    settled(page, page.evaluate(POINTS))
    button.click()
    assert button.text_content() == "Play"
    page.wait_for_timeout(300)
    still = page.evaluate(POINTS)
    page.wait_for_timeout(300)
    assert page.evaluate(POINTS) == still


def test_colours_can_be_chosen(report: tuple[int, Page]):
    page = report[1]
    page.select_option("#moving-colour", "likelihood gain")
    page.wait_for_function("document.getElementById('landscape').textContent.includes('likelihood gain')")
    page.select_option("#moving-colour", "")
    page.wait_for_function("!document.getElementById('landscape').textContent.includes('likelihood')")


def test_pairs_can_be_chosen(report: tuple[int, Page]):
    latents, page = report
    assert page.locator("#moving-plane").count() == (latents > 2)
    if latents > 2:
        page.select_option("#moving-plane", "2")
        page.wait_for_selector("#moving-latent-3")
        assert page.locator("#moving-sliders input").count() == 2
        page.select_option("#moving-plane", "0")


def test_the_model_moves_with_the_map_or_alone(report: tuple[int, Page]):
    latents, page = report
    assert page.locator("#moving-shown").count() == (latents > 1)
    if latents == 1:
        return
    thread = POINTS.replace("data[0]", "data[1]")
    set_slider(page, 1, 0.0)
    page.wait_for_timeout(300)
    rest = page.evaluate(thread)
    assert len(rest) == 11
    set_slider(page, 1, 1.0)
    page.wait_for_function(f"(before) => {thread}.some((x, p) => Math.abs(x - before[p]) > 0.1)", arg=rest)
    visible = "document.getElementById('molecule').data.map((trace) => trace.visible !== false)"
    for choice, expected in (("map", [True, False]), ("map and model", [True, True])):
        page.select_option("#moving-shown", choice)
        assert page.evaluate(visible) == expected


def test_the_model_alone_is_a_cartoon_that_follows_the_sliders(report: tuple[int, Page]):
    """In Mol*: its canvas shows something, something else at the other end, and the same again."""
    latents, page = report
    if latents == 1:
        assert not page.locator("#cartoon").count() and not page.locator("#molstar-js").count()
        return
    set_slider(page, 1, 0.0)
    page.select_option("#moving-shown", "model")
    page.wait_for_selector("#cartoon canvas")
    assert not page.locator("#molecule").is_visible()
    drawn = []
    for share in (0.0, 1.0, 0.0, 1.0):
        set_slider(page, 1, share)
        page.wait_for_timeout(1500)
        drawn.append(page.locator("#cartoon canvas").screenshot())
    colours = [len(Image.open(io.BytesIO(each)).convert("RGB").getcolors(1 << 20)) for each in drawn]
    assert min(colours) > 50
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3]
    for choice in ("map", "model", "map and model"):  # as fast as one may
        page.select_option("#moving-shown", choice)
    assert page.locator("#molecule").is_visible() and not page.locator("#cartoon").is_visible()
    rest = page.evaluate(POINTS)
    set_slider(page, 1, 0.0)
    settled(page, rest)


def test_print_leaves_the_moving_part_out(report: tuple[int, Page]):
    page = report[1]
    page.emulate_media(media="print")
    assert not page.locator("#moving").is_visible()
    assert page.locator("#fsc").is_visible()
    page.emulate_media(media="screen")
