"""Output nodes: which type and keywords an output of job_specs has in ccpem-pipeliner (those of 1.6.1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeliner.data_structure import (
    NODE_ATOMCOORDS,
    NODE_DENSITYMAP,
    NODE_LOGFILE,
    NODE_MASK3D,
    NODE_MLMODEL,
    NODE_PARTICLEGROUPMETADATA,
    NODE_PROCESSDATA,
)

from job_specs.jobs import JobSpec, Output

__all__ = ["node_of", "nodes_after", "nodes_before"]

# kind -> type and keywords. "relion" says whose flavour a file has, "halfmap" is what PostProcess asks for.
TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "particles": (NODE_PARTICLEGROUPMETADATA, ("relion",)),
    "half_map": (NODE_DENSITYMAP, ("relion", "halfmap")),
    "map": (NODE_DENSITYMAP, ("relion",)),
    "mask": (NODE_MASK3D, ("relion",)),
    "logfile": (NODE_LOGFILE, ("relion",)),
    "model": (NODE_MLMODEL, ()),
    "mesh": (NODE_PROCESSDATA, ()),
    "table": (NODE_PROCESSDATA, ()),
    "atomic_model": (NODE_ATOMCOORDS, ()),
}


def node_of(output: Output) -> tuple[str, list[str]] | None:
    """(type, keywords) of an output; None for pictures and pages, which no job can take as input.

    Data of a kind that is ours alone also has the name of the file as keyword: ProcessData.npz.flex_job.mesh.
    """
    if output.kind not in TYPES:
        return None
    node, keywords = TYPES[output.kind]
    own = (Path(output.file).stem,) if node == NODE_PROCESSDATA else ()
    return node, [*keywords, "flex_job", *own]


def nodes_before(job: JobSpec) -> Iterator[tuple[str, str, list[str]]]:
    """(file, type, keywords) of outputs whose names are known before the job runs."""
    for output in job.outputs:
        node = node_of(output)
        if node is not None and _is_known(output):
            yield output.file, *node


def nodes_after(job: JobSpec, folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(file, type, keywords) of those that only the finished job knows: of any number, as frame_*.mrc, or optional."""
    for output in job.outputs:
        node = node_of(output)
        if node is not None and not _is_known(output):
            for path in sorted(folder.glob(output.file)):
                yield path.name, *node


def _is_known(output: Output) -> bool:
    return "*" not in output.file and not output.optional
