"""The directory of a job: whose it is, which of its stages are complete, and from where an interrupted one goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group
from flex_job.events import Events
from flex_job.lock import FolderLock
from flex_job.manifest import Manifest, key_of, versions
from flex_job.settings import StageSettings, check_settings

__all__ = ["JobFolder"]


class JobFolder:
    """A job directory and its stages. Stages that a manifest calls complete for the same settings (see `settings`),
    and whose files are what they wrote, are not run again; one that was interrupted goes on from its checkpoint. The
    directory is this job's alone while this object lives: FolderInUse is raised where another run has it.

    Every method and property is to be used by all ranks of `group` (one by default) in the same order. `folder` and
    scratch must be the same disk for all.
    """

    def __init__(self, settings: StageSettings, folder: Path, events: Events, group: Group | None = None) -> None:
        self.settings, self.folder, self.events = settings, folder, events
        self.group = group or Group()
        self._lock = FolderLock(folder)
        self.group.first_does(self._take_lock)
        if not self.group.is_first:
            self._lock.join()
        scratch = settings.parameters.prep.scratch
        self.cache_folder = Path(scratch or folder) / (
            f"flex_cache_{key_of(str(folder.resolve()))}" if scratch else "cache"
        )
        self.manifest = self.group.first_does(self._open)

    def _take_lock(self) -> None:
        self._lock.take()
        if not self._lock.works:
            self.events.message(
                f"{self.folder}: this file system has no locks; a second run in this folder would not be noticed"
            )

    def _open(self) -> Manifest:
        """Clear what a restart wants cleared, look for what has changed, and describe the run in the manifest."""
        manifest, settings = Manifest(self.folder), self.settings
        consensus, parameters = settings.consensus, settings.parameters
        self._tell_damage(manifest)
        run, now = parameters.run, key_of(settings.flex, asdict(parameters.mesh))
        # Continue and requeueing repeat the command: a restart that was interrupted goes on, it does not begin again.
        if run.restart and manifest.record.get("restarting") != now:
            self._throw_away(manifest)
            manifest.record["restarting"] = now
        for stage in ("prep", "mesh") if settings.model else ("train", "prep", "mesh"):
            check_settings(manifest, settings, stage, self.events.message)
        manifest.describe(
            inputs={str(path): settings.inputs.get(f"input {path.name}") for path in consensus.source_files},
            parameters=asdict(parameters),
            versions=versions(),
            seed=run.seed,
            particles=len(consensus),
            processes=self.group.size,
        )
        return manifest

    def _tell_damage(self, manifest: Manifest) -> None:
        while manifest.damage:
            self.events.message(manifest.damage.pop(0))

    def _throw_away(self, manifest: Manifest) -> None:
        manifest.forget()
        for pattern in ("checkpoint_*", "*.damaged"):
            for leftover in self.folder.glob(pattern):
                leftover.unlink()
        shutil.rmtree(self.cache_folder, ignore_errors=True)

    def checkpoint(self, stage: str) -> Checkpoint:
        """That of a stage, of its present settings."""
        key = key_of(stage, getattr(self.settings, stage))
        return Checkpoint(self.folder / f"checkpoint_{stage}.pt", key, self.events.message)

    def is_due(self, stage: str) -> bool:
        """Whether a stage has to run: one look at the disk, by the first rank, so that all do the same. Raises
        InputProblems where that would throw work away."""

        def look() -> bool:
            check_settings(self.manifest, self.settings, stage, self.events.message)
            complete = self.manifest.is_complete(stage, getattr(self.settings, stage))
            self._tell_damage(self.manifest)
            return not complete

        return self.group.first_does(look)

    @contextmanager
    def stage(self, stage: str, outputs: Iterable[str]) -> Iterator[dict[str, Any]]:
        """A stage of all ranks; when it ends the files that the first wrote are there for the others."""
        with self.events.stage(stage):
            if self.group.is_first:
                with self.manifest.stage(stage, getattr(self.settings, stage), outputs) as results:
                    yield results
            else:
                yield {}
            self.group.barrier()

    def clean(self) -> None:
        """The end of a job: drop checkpoints and particle caches; a later run that needs caches makes them."""
        self.group.barrier()  # of the last to read them
        if self.group.is_first:
            shutil.rmtree(self.cache_folder, ignore_errors=True)
            for leftover in self.folder.glob("checkpoint_*.pt"):
                leftover.unlink()
            self.manifest.describe(restarting=None)
