"""What each job is: its inputs, outputs and groups of parameters, and how given values become parameters.

Input and output kinds are plain words; how a host names or types them is the host's own affair.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from job_specs.parameter import Parameter, parameters_of, parse
from job_specs.parameters import RefineParameters, names_in, problems

__all__ = ["JOBS", "Input", "JobSpec", "Output", "build", "near_matches", "pick"]

InputKind = Literal["particles", "map", "mask", "model"]
OutputKind = Literal[
    "particles", "half_map", "map", "mask", "logfile", "model", "mesh", "table", "report", "atomic_model"
]


@dataclass(frozen=True)
class Input:
    """A file or job directory that a job reads."""

    kind: InputKind
    help: str
    required: bool = False


@dataclass(frozen=True)
class Output:
    """A file in the job directory; `file` may be a glob pattern such as frame_*.mrc. An `optional` one is there when it
    was asked for."""

    file: str
    kind: OutputKind
    help: str
    optional: bool = False


@dataclass(frozen=True)
class JobSpec:
    """One job. `groups` are names of fields of RefineParameters, in the order in which users see them."""

    name: str
    title: str
    help: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    groups: tuple[str, ...]

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(group, parameter) of everything the job takes."""
        defaults = RefineParameters()
        for group in self.groups:
            for declared in parameters_of(getattr(defaults, group)):
                yield group, declared

    def declared(self) -> dict[str, Parameter]:
        """The job's parameters by name; names are unique over all groups."""
        return {declared.name: declared for _, declared in self.parameters()}


PARTICLES = Input("particles", "Particles of the consensus refinement: run_data.star of Refine3D", required=True)
MAP = Input("map", "Consensus map; without it, the one beside the particles")
MASK = Input("mask", "Mask of the molecule; without it, one is made from the map")
MODEL = Input("model", "Job directory (or flex_model.pt) of a trained model; else the one beside the particles", True)
MODELLED = Input(
    "particles", "particles.star of a flexible job; without it, the particles that the model was trained on"
)
MOVED_MAP = Input("map", "Map to move; without it, flex_class001.mrc beside the model, or the model's own")

MESH_FILES = (
    Output("mask.mrc", "mask", "Soft mask in use"),
    Output("mesh.npz", "mesh", "Tetrahedral mesh"),
    Output("mesh.png", "report", "The mesh over the map"),
)
MODEL_FILES = (
    Output("particles.star", "particles", "Input rows and columns, with flexLatent1..K and flexLatentStd1..K added"),
    Output("flex_model.pt", "model", "Motion model: flow, latents, canonical map"),
)
MAP_FILES = (
    Output("flex_half1_class001_unfil.mrc", "half_map", "Half-map 1 through the motion"),
    Output("flex_half2_class001_unfil.mrc", "half_map", "Half-map 2 through the motion"),
    Output("flex_class001.mrc", "map", "Both halves combined, FSC-weighted and sharpened"),
    Output("rigid_half1_class001_unfil.mrc", "half_map", "Half-map 1 without motion, by the same solver"),
    Output("rigid_half2_class001_unfil.mrc", "half_map", "Half-map 2 without motion, by the same solver"),
    Output("fsc.star", "table", "FSC curves and resolutions, with and without motion"),
    Output("flex_locres.mrc", "report", "Local resolution (A) through the motion, to colour the map by"),
    Output("rigid_locres.mrc", "report", "Local resolution (A) without motion"),
    Output("flex_fsc.xml", "report", "FSC of the half-maps through the motion, for a deposition in EMDB"),
    Output("rigid_fsc.xml", "report", "The same without motion"),
)
VALIDATION = Output("validation.json", "table", "Whether the images support the motion: verdict, gains, intervals")
REPORT_FILES = (
    Output("logfile.pdf", "logfile", "Report as PDF"),
    Output("report.html", "report", "Report in one self-contained page"),
    Output("motion_amplitude.mrc", "report", "How far each voxel moves over the particles (A, root mean square)"),
    Output("motion_uncertainty.mrc", "report", "How uncertain that is of a single particle (A, root mean square)"),
)
MANIFEST = Output("manifest.json", "table", "Hashes of inputs, parameters, versions, seeds, seconds and memory")

JOBS: dict[str, JobSpec] = {
    job.name: job
    for job in (
        JobSpec(
            "refine",
            "Flexible refinement",
            "Mesh, motion model, half-maps through the motion and report, from a consensus refinement.",
            (PARTICLES, MAP, MASK),
            (*MODEL_FILES, *MAP_FILES, *MESH_FILES, *REPORT_FILES, VALIDATION, MANIFEST),
            ("train", "prep", "mesh", "reconstruct", "resolution", "run"),
        ),
        JobSpec(
            "prep",
            "Prepare particles",
            "Whitened particles at the training box, with noise spectrum, contrast sign and scale.",
            (PARTICLES, MAP, MASK),
            (MANIFEST,),
            ("prep", "mesh", "run"),
        ),
        JobSpec(
            "mesh",
            "Build the mesh",
            "Mask and tetrahedral mesh of the consensus map.",
            (PARTICLES, MAP, MASK),
            (*MESH_FILES, MANIFEST),
            ("prep", "mesh", "run"),
        ),
        JobSpec(
            "train",
            "Train the motion model",
            "Mesh, flow and latents, without the final half-maps.",
            (PARTICLES, MAP, MASK),
            (*MODEL_FILES, *MESH_FILES, MANIFEST),
            ("train", "prep", "mesh", "run"),
        ),
        JobSpec(
            "validate",
            "Is the motion real?",
            "The training on a sample of the particles, tested on others, and against simulations without motion.",
            (PARTICLES, MAP, MASK),
            (VALIDATION, *MESH_FILES, MANIFEST),
            ("validate", "train", "prep", "mesh", "run"),
        ),
        JobSpec(
            "reconstruct",
            "Half-maps through the motion",
            "Half-maps through a trained motion, and without it, at the full box.",
            (MODEL, MODELLED, MAP, MASK),
            (*MAP_FILES, *REPORT_FILES, MANIFEST),
            ("reconstruct", "resolution", "run"),
        ),
        JobSpec(
            "generate",
            "Volumes along the motion",
            "Maps, atomic models and a movie at given latents, or along a path from the 5th to the 95th percentile.",
            (MODEL, replace(MODELLED, help="particles.star of a flexible job, whose model is then used"), MOVED_MAP),
            (
                Output("frame_*.mrc", "map", "One map per row of the latents"),
                Output("latents.csv", "table", "Latents of each frame, particles near it, and its uncertainty"),
                Output("frames.cif", "atomic_model", "The atomic model in every frame, one model each", True),
                Output("frame_*.cif", "atomic_model", "The same in a file each", True),
                Output(
                    "canonical.cif",
                    "atomic_model",
                    "The atomic model taken back to the map that is moved",
                    optional=True,
                ),
                Output(
                    "geometry.csv",
                    "table",
                    "How bond lengths and torsions of the model change, per frame",
                    optional=True,
                ),
                Output(
                    "series.dcd",
                    "report",
                    "The same there and back as a trajectory, one conformation of each atom",
                    optional=True,
                ),
                Output("series.cxc", "report", "Script that opens and plays all this in ChimeraX", True),
                Output(
                    "motion.defattr",
                    "report",
                    "How far each residue moves (A, root mean square), for ChimeraX",
                    optional=True,
                ),
                Output("series.gif", "report", "Movie of the motion", True),
                Output("series.mp4", "report", "The same as video", True),
                Output(
                    "deformation_*.vtu",
                    "report",
                    "Mesh with its displacement (A) and rigidity, per frame",
                    optional=True,
                ),
                Output("deformation.pvd", "report", "Opens these as a series in ParaView", True),
                Output(
                    "displacement_*.mrc",
                    "report",
                    "Displacement (A) along x, y or z of each voxel of the map",
                    optional=True,
                ),
                Output("frames.zip", "report", "All of this but the movie, packed", True),
            ),
            ("generate", "run"),
        ),
        JobSpec(
            "select",
            "Select particles by their latents",
            "Particles within a range of the latents, divided into clusters: a STAR file each, and class numbers.",
            (replace(MODELLED, help="particles.star of a flexible job, or a selection of it", required=True),),
            (
                Output("particles.star", "particles", "Selected rows; rlnClassNumber is their cluster"),
                Output("cluster_*.star", "particles", "The rows of each cluster"),
                Output("clusters.csv", "table", "Count of each cluster and its most central latents, for `generate`"),
                Output("clusters.png", "report", "Clusters over the latents"),
                MANIFEST,
            ),
            ("select", "run"),
        ),
    )
}


def near_matches(name: str, known: Iterator[str] | tuple[str, ...] | list[str]) -> str:
    """Either "; did you mean a, b?" for a name that is not known, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


def pick(
    declared: Mapping[str, Parameter], given: Mapping[str, object], where: str
) -> tuple[dict[str, Any], list[str]]:
    """Typed values for `given`, and a line for each that is unknown or does not fit; `where` says who gave them."""
    values: dict[str, Any] = {}
    found: list[str] = []
    for name, raw in given.items():
        key = str(name).replace("-", "_")
        if key not in declared:
            found.append(f"{where}: there is no parameter {name}{near_matches(key, list(declared))}")
            continue
        try:
            values[key] = parse(declared[key], raw)
        except ValueError as error:
            found.append(f"{where}: {error}")
    return values, found


def build(
    job: JobSpec, config: Mapping[str, object], flags: Mapping[str, object]
) -> tuple[RefineParameters, list[str]]:
    """Parameters of a run: defaults, then `config`, then `flags`; and every problem, one line each.

    A value with a problem is left at its default, so that further checks can go on and report theirs as well.
    """
    declared = job.declared()
    from_config, found = pick(declared, config, "config file")
    from_flags, more = pick(declared, flags, "command line")
    values = from_config | from_flags
    if (values.get("latent_columns") or values.get("latent_file")) and "latent_start" not in values:
        values["latent_start"] = "columns"
    if values.get("latent_columns") and not values.get("latent_dims"):
        values["latent_dims"] = len(names_in(str(values["latent_columns"])))
    defaults = RefineParameters()
    groups = {}
    for entry in fields(defaults):
        group = getattr(defaults, entry.name)
        own = {field.name for field in fields(group)} if entry.name in job.groups else set()
        groups[entry.name] = replace(group, **{name: value for name, value in values.items() if name in own})
    parameters = RefineParameters(**groups)
    return parameters, found + more + problems(parameters)
