"""`flex-job explore` in a real browser: hover, lasso, pen, what is saved, and nobody else gets in."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import starfile
import torch
from browser.conftest import Opened, open_page
from playwright.sync_api import Browser, Page

from flex_job.events import Events
from flex_job.flow import FlowGenerator
from flex_job.latent_paths import resampled
from flex_job.mesh import build_mesh
from flex_job.model import FlexModel
from flex_job.problems import InputProblems
from flex_job.volume import write_volume
from integration.local.landscape.app import serve
from integration.local.landscape.saving import drawn_points, save_path, save_selection
from integration.local.landscape.view import JobView
from integration.relion.read import read_consensus
from integration.relion.simulate import simulate_project
from integration.relion.write import read_latents, write_particles
from job_specs.parameters import MeshParameters

STAR, MASK = "Refine3D/job001/run_data.star", "MaskCreate/job002/mask.mrc"
POINTS = "Array.from(document.querySelector('#molecule .js-plotly-plot')._fullData[0].x)"
IMAGE = "document.querySelector('#image .js-plotly-plot')._fullData[0].z[16]"


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A job directory with a motion model that nobody trained: the page does not mind."""
    project = tmp_path_factory.mktemp("project")
    simulate_project(project, motion="two_hinges", particles=400, box=32, pixel_size_A=8.0, snr=0.3, seed=3)
    folder = project / "External/job005"
    folder.mkdir(parents=True)
    consensus = read_consensus(project / STAR, mask_path=project / MASK)
    mesh = build_mesh(consensus.map, consensus.mask, MeshParameters(tetra_cells=10), None, None, Events())
    latents = np.load(project / "truth/truth.npz")["latents"].astype(np.float32)
    torch.manual_seed(0)
    flow = FlowGenerator(2, 3, 8, torch.from_numpy(mesh.motion))
    torch.nn.init.normal_(flow.last.weight, std=3.0)
    covariance = np.tile(0.02 * np.eye(2, dtype=np.float32), (len(latents), 1, 1))
    model = FlexModel(mesh, flow, latents, covariance, consensus.map, consensus.mask, np.zeros((0, 1)), ("loss",))
    model.save(folder / "flex_model.pt")
    write_particles(project / STAR, folder / "particles.star", latents, model.latent_std)
    write_volume(folder / "flex_class001.mrc", consensus.map.data, consensus.map.pixel_size_A)
    write_volume(folder / "mask.mrc", consensus.mask.data, consensus.mask.pixel_size_A)
    np.save(folder / "likelihood_gain.npy", np.linspace(-1, 5, len(latents)))
    return folder


@dataclass
class Landscape:
    opened: Opened
    address: str
    view: JobView

    @property
    def page(self) -> Page:
        return self.opened.page

    def at(self, across: float, up: float) -> tuple[float, float]:
        """The place of a share of the plot's width and height on the screen."""
        self.page.evaluate("scrollTo(0, 0)")
        box = self.page.locator("#landscape .nsewdrag").first.bounding_box()
        return box["x"] + across * box["width"], box["y"] + (1 - up) * box["height"]

    def draw(self, *places: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*places[0]))
        mouse.down()
        for place in places[1:]:
            mouse.move(*self.at(*place), steps=4)
        mouse.up()

    def told(self, words: str) -> str:
        """What stands under the buttons once it holds `words`."""
        self.page.wait_for_function(
            "(words) => document.getElementById('saved').textContent.includes(words)", arg=words
        )
        return self.page.locator("#saved").text_content() or ""


@pytest.fixture(scope="module")
def landscape(job: Path, browser: Browser) -> Iterator[Landscape]:
    view = JobView.load(job)
    server, address = serve(view, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    opened = open_page(browser, address)
    opened.page.wait_for_function(
        "document.getElementById('told')?.textContent && document.querySelector('#image .js-plotly-plot')?.data?.[0]"
    )
    yield Landscape(opened, address, view)
    opened.page.close()
    server.shutdown()
    server.server_close()
    opened.check_silent()


def test_pointing_bends_the_molecule_and_changes_the_image(landscape: Landscape):
    page = landscape.page
    rest, image = page.evaluate(POINTS), page.evaluate(IMAGE)
    for place in np.linspace(0.15, 0.85, 30):
        page.mouse.move(*landscape.at(place, place))
    page.wait_for_function(f"(before) => {POINTS}.some((x, p) => Math.abs(x - before[p]) > 0.5)", arg=rest)
    page.wait_for_function(f"(before) => {IMAGE}.some((v, p) => v !== before[p])", arg=image)


def test_what_the_lasso_holds_is_saved(landscape: Landscape):
    page = landscape.page
    landscape.draw((0.05, 0.95), (0.5, 0.95), (0.5, 0.05), (0.05, 0.05), (0.05, 0.9))
    text = landscape.told("particles selected")
    count = int(text.split()[0])
    assert 50 < count < 350
    page.fill("#name", "left")
    page.click("#save-selection")
    landscape.told("left.star")
    saved = starfile.read(landscape.view.folder / "landscape/left.star")["particles"]
    every = starfile.read(landscape.view.particles)["particles"]
    assert len(saved) == count
    kept = every["rlnImageName"].isin(saved["rlnImageName"])
    assert kept.sum() == count and saved.reset_index(drop=True).equals(every[kept].reset_index(drop=True))
    assert saved["flexLatent1"].max() < every["flexLatent1"][~kept].max()
    page.click("#save-selection")
    assert "choose another name" in landscape.told("Not saved")


def test_a_drawn_path_is_walked_and_saved(landscape: Landscape):
    page = landscape.page
    page.locator('#landscape [data-val="drawopenpath"]').click()
    page.wait_for_timeout(700)
    landscape.draw((0.2, 0.2), (0.5, 0.6), (0.8, 0.7))
    page.wait_for_selector("#walk:not(.hidden)")
    before = page.evaluate(POINTS)
    page.click("#play")
    page.wait_for_function(f"(before) => {POINTS}.some((x, p) => x !== before[p])", arg=before)
    page.click("#play")
    page.fill("#name", "way")
    page.click("#save-path")
    text = landscape.told("way.csv")
    assert "relion_flex_generate" in text and "21 frames" in text
    points = read_latents(str(landscape.view.folder / "landscape/way.csv"))
    assert points.shape == (21, 2)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 1.2 * steps.min() and points[-1, 0] > points[0, 0]
    form = (landscape.view.folder / "landscape/way_job.star").read_text()
    assert "way.csv" in form and "relion_flex_generate" in form


def test_only_who_has_the_token_gets_in(landscape: Landscape):
    host, token = landscape.address.split("/")[2:4]
    assert host.startswith("127.0.0.1:") and len(token) > 15
    for path, status in ((f"/{token}/", 200), ("/", 404), ("/wrong/", 404), ("/_dash-layout", 404)):
        connection = http.client.HTTPConnection(host)
        connection.request("GET", path)
        assert connection.getresponse().status == status, path
        connection.close()


def test_a_folder_without_a_model_is_told(tmp_path: Path):
    with pytest.raises(InputProblems, match=r"no flex_model.pt; expected the directory of a finished job"):
        JobView.load(tmp_path)


def test_names_and_drawings(job: Path, tmp_path: Path):
    assert drawn_points("M1.5,-2L3e-1,4").tolist() == [[1.5, -2], [0.3, 4]]
    even = resampled(np.array([[0.0, 0], [1, 0], [1, 3]]), 5)
    assert np.allclose(even, [[0, 0], [1, 0], [1, 1], [1, 2], [1, 3]])
    with pytest.raises(ValueError, match="no name for a file"):
        save_path(tmp_path, "../up", even)
    with pytest.raises(ValueError, match="no path"):
        save_path(tmp_path, "a", even[:1])
    with pytest.raises(ValueError, match="no particle is selected"):
        save_selection(tmp_path, job / "particles.star", "a", np.zeros(400, bool))
