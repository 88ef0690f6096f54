"""What each figure means, in plain words, for a reader who sees it for the first time."""

from __future__ import annotations

from flex_job.report.data import ReportData

__all__ = [
    "choice",
    "extremes",
    "fsc",
    "latents",
    "learning",
    "locres",
    "mesh",
    "motion_slices",
    "motion_surface",
    "slices",
    "surfaces",
    "uncertainty",
]


def fsc(data: ReportData) -> str:
    text = (
        "Thick: corrected for the mask by phase randomisation, the curve to quote. Dotted: no mask. Dash-dotted: "
        "what the mask alone gives with random phases; where it is well above 0, the mask is too tight."
    )
    if data.resolution.masks:
        text += " Thin, in colours of their own: corrected, inside each of the given masks; the rigid one is dashed."
    if data.resolution.model is not None:
        text += " Dots: with the atomic model, to be compared with 0.5."
    if data.rigid is not None and data.flex is not None:
        text += " Below: the gain by the motion."
    if data.training_limit_A:
        text += " Tinted: resolutions that the motion model was trained on; there the half-maps share the model."
    return text


def motion_surface(data: ReportData) -> str:
    return (
        f"The map's surface coloured by the {data.motion_definition}. The colour scale ends at the 99th percentile of "
        "the voxels inside the mask."
    )


def motion_slices(data: ReportData) -> str:
    return (
        "The same in the three slices that hold most density: colour is motion inside the mask, lines are contours of "
        "the density."
    )


def extremes(data: ReportData) -> str:
    return (
        f"The first and the last of {len(data.frames)} maps along latent 1, contoured at the same enclosed volume. "
        "Grey: where both coincide. Generated from the model: they show what the model says and are not "
        "reconstructions of their own."
    )


def images(data: ReportData) -> str:
    assert data.images is not None
    return (
        f"Means of {data.images.count} particle images each, seen within 25° of one direction and turned upright, "
        "along latent 1 (its value above each); phases flipped. The map has no part in them, only the poses and the "
        "latents by which images are put together. As these were fitted to the same images, noise sorted by them can "
        "look a little like the motion: whether it is real, the verdict says. Last: what appears (violet), what goes "
        "(orange)."
    )


def latents(data: ReportData, shown: int) -> str:
    text = (
        "Where the particles lie along the latents. A continuum is a smooth hump; separate humps are separate states; "
        "a spike at the edge or at 0 means a latent that carries nothing. Axes have no unit and may be mirrored or "
        "mixed between runs."
    )
    count = 0 if data.latents is None else data.latents.shape[1]
    return text + (f" The {shown} latents that spread most of {count} are shown." if shown < count else "")


def uncertainty(data: ReportData) -> str:
    return (
        "Posterior standard deviation of each particle's latent, from the curvature of the fit at its optimum. Compare "
        "it with the spread of the latents: where both are alike, a single particle's value says little."
    )


def slices(data: ReportData) -> str:
    applied = [
        f"{name} {value:.0f} Å²" if value else f"{name} none, not sharpened"
        for name, value in (("rigid", data.rigid_bfactor_A2), ("flex", data.flex_bfactor_A2))
        if value is not None
    ]
    return (
        "The three slices that hold most density; each map in units of its own spread inside the mask, density dark."
        + (f" B-factor applied: {'; '.join(applied)}." if applied else "")
    )


def locres(data: ReportData) -> str:
    return (
        "Resolution in soft spheres that are moved over the map (RELION's rule), in the same slices, inside the mask; "
        "lines are contours of the density. Both maps have one scale, from the 2nd to the 98th percentile. A sphere is "
        "larger than a residue: edges of domains share their neighbours' value."
    )


def surfaces(data: ReportData, enclosed_A3: float) -> str:
    return (
        f"Both surfaces enclose the same volume inside the mask ({enclosed_A3 / 1000:.0f} nm³), so that shapes are "
        "compared and not contour levels; pieces below 2 % of the largest are hidden. Both maps are FSC-weighted "
        "averages of their half-maps."
    )


def mesh(data: ReportData) -> str:
    assert data.mesh is not None
    held = int((data.mesh.motion < 0.5).sum())
    text = (
        f"{len(data.mesh.vertices_A):,} vertices, {len(data.mesh.cells):,} cells, cut in three planes, over the "
        "consensus map. The colour is how strongly a cell resists stretching (1: dense, stiff). Motion finer than a "
        "cell cannot be described."
    )
    return text + (f" Dots: vertices held still by the zero-motion mask ({held:,} in all)." if held else "")


def choice(data: ReportData) -> str:
    return (
        "Candidates were trained on one sample of the particles and tested on others, the same for all; bars are "
        "standard errors of the difference, particle by particle. Settings go up while that gains more than a "
        "standard error (latents: two), and down while it loses nothing."
    )


def learning(data: ReportData) -> str:
    return (
        "Training has settled when the curves are flat at the finest detail used, which follows the plan. A data term "
        "that still falls at constant detail, or a motion that still grows, asks for more epochs."
    )
