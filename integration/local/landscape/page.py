"""The landscape page: latents on the left, the molecule and the images' mean on the right, what is saved below."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import dcc, html
from numpy.typing import NDArray

from flex_job.report.look import GREY, INK, LIGHT, MOTION_RAMP
from integration.local.landscape.view import JobView

__all__ = ["image_figure", "landscape_figure", "layout", "molecule_figure", "spread_axes"]

MOST_SHOWN = 20_000  # particles drawn; a selection holds all within its outline
NO_GAIN = "uncertainty"
FONT = {"family": "system-ui, 'DejaVu Sans', Arial, sans-serif", "size": 12, "color": INK}
CONFIG: Any = {
    "displaylogo": False,
    "displayModeBar": True,
    "modeBarButtons": [["lasso2d", "select2d", "drawopenpath", "eraseshape"], ["pan2d", "zoom2d", "resetScale2d"]],
}


def spread_axes(view: JobView) -> list[dict[str, Any]]:
    """What the landscape's axes can be: the latents, and for a single one something to spread particles by."""
    axes = [{"label": f"latent {k + 1}", "value": f"{k}"} for k in range(view.latents.shape[1])]
    if len(axes) == 1:
        axes += [{"label": name, "value": name} for name in view.colours()]
    return axes


def layout(view: JobView) -> html.Div:
    """The whole page."""
    axes = spread_axes(view)
    colours = [{"label": "particles", "value": ""}, *({"label": name, "value": name} for name in view.colours())]
    return html.Div(
        [
            html.H1("Landscape"),
            html.Div(f"{view.folder} · {len(view.latents):,} particles", className="sub"),
            html.Div(
                [
                    html.Div(
                        [
                            html.Div(
                                [
                                    _labelled("across", _choice("x", axes, axes[0]["value"])),
                                    _labelled("up", _choice("y", axes, axes[1]["value"])),
                                    _labelled("colour", _choice("colour", colours, "")),
                                ],
                                className="bar",
                            ),
                            dcc.Graph(id="landscape", config=CONFIG, className="plot"),
                            html.Div(id="told", className="told"),
                            html.Div(
                                [
                                    dcc.Slider(0, 1, step=1, value=0, id="frame", marks=None),
                                    html.Button("Play", id="play"),
                                ],
                                id="walk",
                                className="walk hidden",
                            ),
                        ],
                        className="card",
                    ),
                    html.Div(
                        [
                            dcc.Graph(id="molecule", config={"displayModeBar": False}, className="plot tall"),
                            html.Div(
                                [
                                    dcc.Graph(id="image", config={"displayModeBar": False}, className="plot small"),
                                    html.P(_images_told(view), className="sub"),
                                ],
                                className="pair",
                            ),
                        ],
                        className="card",
                    ),
                ],
                className="columns",
            ),
            html.Div(
                [
                    html.P(
                        "Point at a particle to bend the molecule to it. Lasso particles to select them; draw a path "
                        "with the pen to walk along it. What is saved goes into the job's folder; nothing there is "
                        "changed.",
                        className="sub",
                    ),
                    html.Div(
                        [
                            _labelled("name", dcc.Input(id="name", value="selection_1", style={"width": "14em"})),
                            html.Button("Save selection", id="save-selection"),
                            html.Button("Save path for generate", id="save-path"),
                            _labelled(
                                "frames",
                                dcc.Input(id="frames", type="number", value=21, min=2, max=500, style={"width": "7em"}),
                            ),
                        ],
                        className="bar",
                    ),
                    html.Pre(id="saved", className="saved"),
                ],
                className="card",
            ),
            dcc.Store(id="at", data=view.median.tolist()),
            dcc.Store(id="selected", data=[]),
            dcc.Store(id="path", data=[]),
            dcc.Interval(id="clock", interval=250, disabled=True),
        ],
        className="page",
    )


def landscape_figure(view: JobView, x: str, y: str, colour: str) -> go.Figure:
    """Particles over two axes; `customdata` are their numbers."""
    shown = np.arange(len(view.latents))
    if len(shown) > MOST_SHOWN:
        shown = np.sort(np.random.default_rng(0).permutation(shown)[:MOST_SHOWN])
    marker: dict[str, Any] = {"size": 4, "opacity": 0.6, "color": "#0072b2"}
    if colour:
        values = view.colours()[colour][shown]
        low, high = np.quantile(values, [0.02, 0.98])
        marker |= {"color": values, "colorscale": "Cividis", "cmin": low, "cmax": high, "showscale": True}
        marker["colorbar"] = {"title": {"text": colour, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    figure = go.Figure(
        go.Scattergl(
            x=along_axis(view, x)[shown], y=along_axis(view, y)[shown],
            customdata=shown.tolist(), mode="markers",
            marker=marker,
            hovertemplate="particle %{customdata}<extra></extra>", name="particles",
        )
    )  # fmt: skip
    names = {entry["value"]: entry["label"] for entry in spread_axes(view)}
    figure.update_layout(
        margin={"l": 50, "r": 10, "t": 30, "b": 44}, font=FONT, dragmode="lasso", plot_bgcolor="white",
        showlegend=False,
        xaxis={"title": names[x], "zeroline": False, "gridcolor": "#e3e8ed"},
        yaxis={"title": names[y], "zeroline": False, "gridcolor": "#e3e8ed"},
        newshape={"line": {"color": "#d55e00", "width": 3}}, uirevision=f"{x} {y}",
    )  # fmt: skip
    return figure


def along_axis(view: JobView, axis: str) -> NDArray[np.floating]:
    """(n,) a latent by its number, or another quantity by its name."""
    return view.latents[:, int(axis)] if axis.isdigit() else view.colours()[axis]


def molecule_figure(view: JobView) -> go.Figure:
    """The surface at the middle of the latents."""
    points, faces = view.points(view.median), view.surface.faces
    top = max(float(np.quantile(view.amplitude_A, 0.99)), 1e-3)
    ramp = [[place / (len(MOTION_RAMP) - 1), colour] for place, colour in enumerate(MOTION_RAMP)]
    figure = go.Figure(
        go.Mesh3d(
            x=points[:, 0], y=points[:, 1], z=points[:, 2], i=faces[:, 0], j=faces[:, 1], k=faces[:, 2],
            intensity=view.amplitude_A, cmin=0, cmax=top, colorscale=ramp, hoverinfo="skip",
            **LIGHT,
            colorbar={
                "title": {"text": "moves by, Å", "side": "top"}, "orientation": "h", "thickness": 8, "len": 0.5,
                "x": 0.02, "xanchor": "left", "y": 0.01, "yanchor": "bottom", "outlinewidth": 0, "nticks": 4,
            },
        )
    )  # fmt: skip
    low, high = _span(view)
    sides, largest = high - low, float((high - low).max())
    axes = {f"{name}axis": {"visible": False, "range": [low[a], high[a]]} for a, name in enumerate(("x", "y", "z"))}
    eye = {"x": 0, "y": 0, "z": 1.35 * max(sides[0], sides[1]) / largest + sides[2] / largest / 2}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, font=FONT, uirevision="kept", paper_bgcolor="rgba(0,0,0,0)",
        scene={
            **axes, "aspectmode": "manual",
            "aspectratio": {name: sides[a] / largest for a, name in enumerate(("x", "y", "z"))},
            "camera": {"eye": eye, "up": {"x": 0, "y": 1, "z": 0}},
        },
    )  # fmt: skip
    return figure


def image_figure(view: JobView, at: NDArray[np.floating]) -> go.Figure:
    """The mean image, of a contrast that stays the same."""
    image = view.image(at)
    figure = go.Figure()
    if image is not None and view.sides is not None:
        every = view.sides.images[:400].mean(axis=0)
        low, high = np.quantile(every, [0.01, 0.999])
        figure.add_heatmap(z=image, zmin=low, zmax=1.2 * high, colorscale="Greys_r", showscale=False, hoverinfo="skip")
    axis = {"visible": False, "fixedrange": True}
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, font=FONT, plot_bgcolor="white", xaxis=axis,
        yaxis={**axis, "scaleanchor": "x"},
    )  # fmt: skip
    return figure


def _span(view: JobView) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Corners of the box that the surface stays in, over the particles."""
    seen = [view.points(view.median)]
    for k in range(view.latents.shape[1]):
        for share in (1, 99):
            at = view.median
            at[k] = np.percentile(view.latents[:, k], share)
            seen.append(view.points(at))
    every = np.concatenate(seen)
    return every.min(axis=0), every.max(axis=0)


def _images_told(view: JobView) -> str:
    if view.sides is None:
        return f"No mean image: {view.no_images}"
    return (
        f"Mean of the 40 images nearest in the latents, of {len(view.sides.index):,} seen from the side that the "
        "molecule above is shown from. The map has no part in it; the latents that choose the images were fitted to "
        "them."
    )


def _choice(name: str, options: list[dict[str, Any]], value: str) -> dcc.Dropdown:
    return dcc.Dropdown(options, value, id=name, clearable=False, searchable=False, className="choice")


def _labelled(text: str, control: Any) -> html.Label:
    return html.Label([html.Span(text, style={"color": GREY}), control], className="labelled")
