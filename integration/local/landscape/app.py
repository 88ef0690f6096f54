"""`flex-job explore`: the landscape page on this machine alone, and what happens when something is done on it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from dash import Dash, Input, Output, Patch, State, ctx, no_update
from numpy.typing import NDArray
from werkzeug.serving import BaseWSGIServer, make_server

from flex_job.latent_paths import resampled
from integration.local.landscape.page import along_axis, image_figure, landscape_figure, layout, molecule_figure
from integration.local.landscape.saving import drawn_points, save_path, save_selection
from integration.local.landscape.view import JobView

__all__ = ["build_app", "serve"]

LOOPBACK = "127.0.0.1"


def serve(view: JobView, port: int) -> tuple[BaseWSGIServer, str]:
    """A server of the page at `port` (0: a free one), of loopback alone, and its address, in which a token stands that
    nobody else knows: without it there is no page. Raises OSError where the port is taken."""
    token = secrets.token_urlsafe(16)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(LOOPBACK, port, build_app(view, token).server, threaded=True)
    return server, f"http://{LOOPBACK}:{server.server_port}/{token}/"


def build_app(view: JobView, token: str) -> Dash:
    """The page, at /TOKEN/ and nowhere else."""
    app = Dash(__name__, url_base_pathname=f"/{token}/", title="Landscape", update_title="")
    app.layout = layout(view)
    app.server.after_request(_kept_private)
    _show(app, view)
    _choose(app, view)
    _save(app, view)
    return app


def _kept_private(response: Any) -> Any:
    """The address, and the token in it, goes to no other site, and no other site may frame the page."""
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "DENY"
    return response


def _show(app: Dash, view: JobView) -> None:
    """Figures that follow the choices and the place."""
    figure: Callable[..., Any] = app.callback(
        Output("landscape", "figure"), Input("x", "value"), Input("y", "value"), Input("colour", "value")
    )
    figure(lambda x, y, colour: landscape_figure(view, x, y, colour))

    @app.callback(
        Output("molecule", "figure"), Output("image", "figure"), Output("told", "children"), Input("at", "data")
    )
    def place(at: list[float]) -> tuple[Any, Any, str]:
        here = np.array(at, dtype=np.float64)
        points = view.points(here)
        if ctx.triggered_id is None:
            molecule: Any = molecule_figure(view)
        else:
            molecule = Patch()
            for a, name in enumerate(("x", "y", "z")):
                molecule["data"][0][name] = points[:, a].tolist()
        near = view.near(here)
        where = ", ".join(f"latent {k + 1}: {value:.2f}" for k, value in enumerate(at))
        many = f"{near:,.0f} particles near" if near >= 1 else "no particle near: extrapolated"
        return molecule, image_figure(view, here), f"{where} · {many}"


def _choose(app: Dash, view: JobView) -> None:
    """Where the molecule is shown, which particles are selected, which path is drawn."""

    @app.callback(
        Output("at", "data"),
        Output("frame", "value"),
        Input("landscape", "hoverData"),
        Input("frame", "value"),
        Input("clock", "n_intervals"),
        Input("path", "data"),
        State("clock", "disabled"),
        prevent_initial_call=True,
    )
    def go_to(hover: Any, frame: int, _: int, path: list[list[float]], still: bool) -> tuple[Any, Any]:
        if ctx.triggered_id == "landscape":
            if not hover or not still or "customdata" not in hover["points"][0]:
                return no_update, no_update
            return view.latents[int(hover["points"][0]["customdata"])].tolist(), no_update
        if not path:
            return no_update, no_update
        if ctx.triggered_id == "path":
            return path[0], 0
        if ctx.triggered_id == "clock":
            frame = (frame + 1) % len(path)
            return path[frame], frame
        return path[min(frame, len(path) - 1)], no_update

    @app.callback(
        Output("selected", "data"),
        Output("saved", "children", allow_duplicate=True),
        Input("landscape", "selectedData"),
        State("x", "value"),
        State("y", "value"),
        prevent_initial_call=True,
    )
    def select(selected: Any, x: str, y: str) -> tuple[list[int], str]:
        kept = _inside(view, selected, x, y)
        return np.flatnonzero(kept).tolist(), f"{kept.sum():,} of {len(kept):,} particles selected"

    @app.callback(
        Output("landscape", "figure", allow_duplicate=True),
        Input("landscape", "relayoutData"),
        prevent_initial_call=True,
    )
    def take_the_pen(done: Any) -> Any:
        """The outline of a selection goes, what it holds stays: the pen would move it where it starts inside."""
        if (done or {}).get("dragmode") != "drawopenpath":
            return no_update
        figure = Patch()
        figure["layout"]["selections"] = []
        figure["layout"]["dragmode"] = "drawopenpath"
        return figure

    @app.callback(
        Output("path", "data"),
        Output("frame", "max"),
        Output("walk", "className"),
        Input("landscape", "relayoutData"),
        Input("frames", "value"),
        State("landscape", "figure"),
        State("x", "value"),
        State("y", "value"),
        prevent_initial_call=True,
    )
    def draw(done: Any, frames: int | None, figure: Any, x: str, y: str) -> tuple[Any, Any, Any]:
        if ctx.triggered_id == "landscape" and not any(name.startswith("shapes") for name in done or {}):
            return no_update, no_update, no_update  # zoomed, or resized
        shapes = [shape for shape in (figure or {}).get("layout", {}).get("shapes", []) if shape.get("type") == "path"]
        drawn = drawn_points(shapes[-1]["path"]) if shapes else np.zeros((0, 2))
        if len(drawn) < 2:
            return [], 1, "walk hidden"
        count = int(np.clip(frames or 2, 2, 500))
        points = np.repeat(view.median[None], count, axis=0)
        for axis, column in zip((x, y), resampled(drawn, count).T, strict=True):
            if axis.isdigit():
                points[:, int(axis)] = column
        return points.tolist(), count - 1, "walk"

    @app.callback(
        Output("clock", "disabled"), Output("play", "children"), Input("play", "n_clicks"), State("clock", "disabled"),
        prevent_initial_call=True,
    )  # fmt: skip
    def play(_: int, still: bool) -> tuple[bool, str]:
        return not still, "Stop" if still else "Play"


def _save(app: Dash, view: JobView) -> None:
    @app.callback(
        Output("saved", "children"),
        Input("save-selection", "n_clicks"),
        Input("save-path", "n_clicks"),
        State("name", "value"),
        State("selected", "data"),
        State("path", "data"),
        prevent_initial_call=True,
    )
    def save(_: int, __: int, name: str, selected: list[int], path: list[list[float]]) -> str:
        try:
            if ctx.triggered_id == "save-selection":
                kept = np.zeros(len(view.latents), dtype=bool)
                kept[selected] = True
                target = save_selection(view.folder, view.particles, name or "", kept)
                return f"{target}: {kept.sum():,} particles, for any job of the host"
            target, command = save_path(view.folder, name or "", np.array(path))
            form = target.with_name(f"{target.stem}_job.star")
            return f"{target}: {len(path)} frames. To make their maps, load {form.name} beside it, or run\n{command}"
        except (ValueError, OSError) as error:
            return f"Not saved: {error}"


def _inside(view: JobView, selected: Any, x: str, y: str) -> NDArray[np.bool_]:
    """(n,) which particles lie within what was drawn: all of them, whether shown as points or not."""
    from matplotlib.path import Path as Outline

    nothing = np.zeros(len(view.latents), dtype=bool)
    if not selected:
        return nothing
    at = np.stack([along_axis(view, axis) for axis in (x, y)], axis=1)
    if selected.get("lassoPoints"):
        outline = np.stack([selected["lassoPoints"]["x"], selected["lassoPoints"]["y"]], axis=1)
        return np.asarray(Outline(outline).contains_points(at))
    if selected.get("range"):
        low, high = (np.array([sorted(selected["range"][axis])[end] for axis in ("x", "y")]) for end in (0, 1))
        return np.asarray(((at >= low) & (at <= high)).all(axis=1))
    nothing[[int(point["customdata"]) for point in selected.get("points", [])]] = True
    return nothing
