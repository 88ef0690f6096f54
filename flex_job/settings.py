"""What each stage of a job depends on, and which changes of that may be made in a job directory that holds work.

A stage's settings are all that its result depends on: contents of the input files, half-sets, seed, and parameters by
name. How a job runs (threads, devices, scratch, time limits) is not among them. With other settings than those that a
stage was begun with its work is thrown away, so the user has to say that this is wanted, with two exceptions that lose
little: a mesh, which takes seconds, is built again whatever has changed (once particles are prepared or the training
has begun, these ask), and half-maps are made again when only parameters of the reconstruction change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from flex_job.consensus import Consensus
from flex_job.manifest import Manifest, file_hash, stacks_hash
from flex_job.problems import InputProblems
from job_specs.parameter import as_written
from job_specs.parameters import RefineParameters, names_in

__all__ = ["StageSettings", "check_settings"]

MASK = ("mask_lowpass", "mask_threshold", "mask_dilate", "mask_soft")
FILES = ("zero_motion_mask", "segmentation", "mesh")  # parameters of the mesh that name one
FSC_FILES = "content of fsc_masks and model_fsc"
HALF_MAP_STAGES = ("prep_full", "rigid", "flex", "gain", "resolution", "report")


class StageSettings:
    """Settings of the stages of a job, by name; `model` is the hash of one that was trained elsewhere."""

    def __init__(self, consensus: Consensus, parameters: RefineParameters, training_box: int, full_box: int) -> None:
        self.consensus, self.parameters = consensus, parameters
        self.training_box, self.full_box = training_box, full_box
        self.model = ""

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Contents of all that was given, and the half-sets that were read or drawn from it."""
        found: dict[str, Any] = {}
        for path in self.consensus.source_files:
            name = f"input {path.name}"
            found[name if name not in found else f"input {path}"] = file_hash(path)
        found["input image stacks"] = stacks_hash(self.consensus.stack_paths)
        found["input half-sets"] = hashlib.sha256(self.consensus.halves.tobytes()).hexdigest()
        return found | {"seed": self.parameters.run.seed}

    @cached_property
    def mesh(self) -> dict[str, Any]:
        p = asdict(self.parameters.mesh)
        contents = {f"content of {name}": file_hash(Path(p[name])) for name in FILES if p[name]}
        return self.inputs | {name: value for name, value in p.items() if name not in FILES} | contents

    @cached_property
    def prep(self) -> dict[str, Any]:
        """Of the particles at the training box; the calibration sees the map through the mask."""
        p, mesh = asdict(self.parameters.prep), asdict(self.parameters.mesh)
        del p["scratch"]
        return self.inputs | {name: mesh[name] for name in MASK} | p | {"box of the training": self.training_box}

    @property
    def prep_full(self) -> dict[str, Any]:
        return self.prep | {"box of the half-maps": self.full_box}

    @property
    def train(self) -> dict[str, Any]:
        if self.model:
            return self.inputs | {"input model": self.model}
        own = as_written(self.parameters.train)
        path = str(own.pop("latent_file"))
        contents = {"content of latent_file": file_hash(Path(path))} if path else {}
        return self.mesh | self.prep | own | contents

    @property
    def choose(self) -> dict[str, Any]:
        return self.train

    @property
    def validate(self) -> dict[str, Any]:
        return self.train | asdict(self.parameters.validate)

    @property
    def rigid(self) -> dict[str, Any]:
        return self.prep_full | asdict(self.parameters.reconstruct)

    @property
    def flex(self) -> dict[str, Any]:
        return self.train | self.rigid

    gain = flex

    @property
    def resolution(self) -> dict[str, Any]:
        p = asdict(self.parameters.resolution)
        files = [*names_in(p["fsc_masks"]), *([p["model_fsc"]] if p["model_fsc"] else [])]
        return self.flex | p | {FSC_FILES: [file_hash(Path(name)) for name in files]}

    report = resolution

    def may_change(self, stage: str) -> set[str]:
        """Settings of which a change costs nothing but the stage itself, which may be run again unasked."""
        if stage == "validate":
            return set(asdict(self.parameters.validate))
        if stage in HALF_MAP_STAGES:
            own = asdict(self.parameters.reconstruct) | asdict(self.parameters.resolution)
            return {*own, FSC_FILES, "box of the half-maps"}
        return set()


def check_settings(manifest: Manifest, settings: StageSettings, stage: str, message: Callable[[str], None]) -> None:
    """Raise InputProblems where a stage was begun with settings whose work is not to be thrown away unasked; say so
    where it simply is run again."""
    changes = manifest.changes(stage, getattr(settings, stage))
    if not changes:
        return
    text = "; ".join(str(change) for change in changes)
    if stage == "mesh" or all(change.name in settings.may_change(stage) for change in changes):
        message(f"{stage} is run again: {text}")
        return
    raise InputProblems(
        [
            f"{manifest.folder} holds work that was done with other settings ({text}); expected the same again: set "
            f"them back to resume, add --restart yes (it throws away what the stage {stage} has done, and all that "
            "follows from it), or choose another --o"
        ]
    )
