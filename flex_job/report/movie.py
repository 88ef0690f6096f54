"""A movie of the motion: the map's surface moved by the flow, from one view, coloured by how far each part moves.

The surface is that of the map at one level; the flow moves its points, as it moves the map's voxels. Every part of the
series goes forth and back.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flex_job.files import path_aside
from flex_job.generate import Support
from flex_job.latent_paths import LatentSeries
from flex_job.mesh.points import MeshPoints
from flex_job.model import FlexModel
from flex_job.report.look import GREY, INK, MOTION_COLOURS
from flex_job.report.surface import Surface, principal_view, render

__all__ = ["Movie", "draw_movie", "ffmpeg", "write_gif", "write_mp4"]

SIZE = (360, 480)  # pixels, height and width: even, as video wants them
MARGIN = 1.08
LINE = 28  # pixels at top and bottom that words are written in
FRAME_S = 0.12
MOST_PICTURES = 120
LEAST_RANGE_A = 1.0  # of the colours: less motion than that should not look like much
MP4_ROUNDS = 2


@dataclass(frozen=True)
class Movie:
    """`pictures` of (height, width, 3) bytes, in the order in which they are shown; the last leads to the first."""

    pictures: list[NDArray[np.uint8]]


def draw_movie(model: FlexModel, surface: Surface, series: LatentSeries, found: Support) -> Movie:
    """Of the map's `surface`. Frames that `found` no particle near say so."""
    shown = _shown(series)
    bound = MeshPoints.at(model.mesh, surface.points_A)
    shifts = {row: bound.carried(model.displacement(series.points[row, None])[0]) for row in sorted(set(shown))}
    stack = np.stack(list(shifts.values()))
    motion = np.sqrt(((stack - stack.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0))
    largest = max(float(np.percentile(motion, 99)), LEAST_RANGE_A)
    colours = MOTION_COLOURS(np.clip(motion / largest, 0, 1))[:, :3]
    view = principal_view(surface)
    low, high = _reach([(surface.points_A + shift) @ view.T for shift in shifts.values()])
    height, width = SIZE
    span = MARGIN * float(max(high[0] - low[0], (high[1] - low[1]) * width / (height - 2 * LINE)))
    centre = view.T @ ((low + high) / 2)
    drawn = {}
    for row, shift in shifts.items():
        moved = _moved(surface, surface.points_A + shift)
        picture, _ = render(moved, view, colours, SIZE, span, centre)
        drawn[row] = _labelled(picture, _title(series, row, found), span, largest)
    return Movie([drawn[row] for row in shown])


def write_gif(path: Path, movie: Movie) -> Path:
    """An endless loop, in colours of its own."""
    images = [Image.fromarray(picture) for picture in movie.pictures]
    palette = images[len(images) // 2].quantize(255, dither=Image.Dither.NONE)
    flat = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with path_aside(path) as aside:
        flat[0].save(
            aside, format="GIF", save_all=True, append_images=flat[1:], duration=int(1000 * FRAME_S), loop=0, disposal=1
        )
    return path


def ffmpeg() -> str | None:
    """The program that makes MP4: the one on the PATH, else that of the package imageio-ffmpeg, if there is one."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def write_mp4(path: Path, movie: Movie, program: str) -> Path:
    """The loop, twice, by ffmpeg. Raises ValueError with what it said when it fails."""
    height, width, _ = movie.pictures[0].shape
    with path_aside(path) as aside:
        command = [
            program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
            "-r", f"{1 / FRAME_S:.6g}", "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4",
            str(aside),
        ]  # fmt: skip
        done = subprocess.run(
            command, input=b"".join(map(np.ndarray.tobytes, movie.pictures * MP4_ROUNDS)), capture_output=True
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
            raise ValueError(f"{path}: {program} cannot write it ({said[-1]})")
    return path


def _shown(series: LatentSeries) -> list[int]:
    """Rows of the series in the order of the pictures: each part forth and back."""
    step = max(1, -(-2 * len(series.points) // MOST_PICTURES))
    rows = []
    for part in series.parts():
        forth = list(range(part.start, part.stop, step))
        rows += [*forth, *forth[-2:0:-1]]
    return rows


def _reach(points: Sequence[NDArray[np.floating]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.min([each.min(axis=0) for each in points], axis=0), np.max([each.max(axis=0) for each in points], axis=0)


def _moved(surface: Surface, points_A: NDArray[np.float64]) -> Surface:
    """The surface with other points: normals are means over the triangles, by their areas."""
    a, b, c = (points_A[surface.faces[:, k]] for k in range(3))
    area = np.cross(b - a, c - a)
    normals = np.zeros_like(points_A)
    for k in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(surface.faces[:, k], weights=area[:, axis], minlength=len(points_A))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    # marching cubes orders triangles one way for all; the old normals say which
    outward = np.sign(np.einsum("pa,pa->", normals, surface.normals)) or 1.0
    return Surface(points_A, normals * outward, surface.faces)


def _title(series: LatentSeries, row: int, found: Support) -> str:
    part = next(k for k, each in enumerate(series.parts()) if each.start <= row < each.stop)
    return f"{series.titles[part]}, frame {row}" + (": no particle near, extrapolated" if found.missing[row] else "")


def _labelled(picture: NDArray[np.float32], title: str, span_A: float, largest_A: float) -> NDArray[np.uint8]:
    """On white, with a scale bar and the colours' range."""
    alpha = picture[..., 3:]
    flat = np.round(255 * (picture[..., :3] * alpha + 1 - alpha)).astype(np.uint8)
    image = Image.fromarray(flat)
    pen, font = ImageDraw.Draw(image), _font()
    height, width = SIZE
    pen.text((10, 8), title, fill=INK, font=font)
    length = next((nice for nice in (500, 200, 100, 50, 20, 10, 5) if nice <= span_A / 3), 2)
    y, end = height - 16, 10 + round(length / span_A * width)
    pen.line([(10, y), (end, y)], fill=INK, width=3)
    pen.text((end + 6, y - 7), f"{length} Å", fill=INK, font=font)
    ramp = MOTION_COLOURS(np.linspace(0, 1, 80))[:, :3]
    bar = Image.fromarray(np.broadcast_to(np.round(255 * ramp).astype(np.uint8), (8, 80, 3)).copy())
    left = width - 170
    image.paste(bar, (left, y - 4))
    pen.text((left - 12, y - 7), "0", fill=GREY, font=font)
    pen.text((left + 86, y - 7), f"{largest_A:.1f} Å rms", fill=GREY, font=font)
    return np.asarray(image)


def _font() -> ImageFont.FreeTypeFont:
    """The pictures' font, which comes with matplotlib."""
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 12)
