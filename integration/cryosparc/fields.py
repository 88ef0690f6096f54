"""Fields of a particle table as checked numbers; what is missing or wrong is collected, not raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from integration.cryosparc.dataset import Records

__all__ = ["Fields"]

Number = TypeVar("Number", np.float64, np.int64)


class Fields:
    """The joined table of particles. A field that is missing and needed, of another shape, or not finite is noted in
    `problems` and read as NaN (numbers) or 0 (indices), so that all problems are found in one go."""

    def __init__(self, records: Records, problems: list[str]) -> None:
        self.records, self.problems = records, problems

    def __len__(self) -> int:
        return len(self.records["uid"])

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def numbers(self, name: str, width: int = 0, default: float | None = None) -> NDArray[np.float64]:
        """(n,) or (n, width) float64; `default` None: the field must be there."""
        shape = (len(self), width) if width else (len(self),)
        if name not in self.records:
            if default is None:
                self.problems.append(f"no field {name}; {_advice(name)}")
            return np.full(shape, np.nan if default is None else default)
        values = self.records[name]
        if values.shape != shape or values.dtype.kind not in "biuf":
            self.problems.append(
                f"field {name} is {values.dtype} of shape {values.shape[1:] or 'one'} per particle; expected "
                f"{width or 1} number(s)"
            )
            return np.full(shape, np.nan)
        numbers = values.astype(np.float64)
        bad = ~np.isfinite(numbers).reshape(len(self), -1).all(axis=1)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            self.problems.append(
                f"field {name} is not finite for {bad.sum()} particles, the first is row {first + 1}; remove them"
            )
        return numbers

    def indices(self, name: str, width: int = 0, default: int | None = None) -> NDArray[np.int64]:
        """(n,) or (n, width) int64 from a field of whole numbers."""
        values = self.numbers(name, width, default)
        return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.int64)

    def strings(self, name: str) -> list[str]:
        """Text (n,), such as paths; empty where the field is missing."""
        if name not in self.records:
            self.problems.append(f"no field {name}; {_advice(name)}")
            return [""] * len(self)
        values = self.records[name]
        if values.ndim != 1 or values.dtype.kind not in "SU":
            self.problems.append(f"field {name} is {values.dtype}; expected text")
            return [""] * len(self)
        texts = values.tolist()
        return [text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text for text in texts]

    def mentioned(self, prefix: str) -> Sequence[str]:
        """Names of fields that begin with `prefix`."""
        return [name for name in self.records if name.startswith(prefix)]


def _advice(name: str) -> str:
    kind = name.split("/")[0]
    return {
        "alignments3D": "expected the particles of a 3D refinement (homogeneous, non-uniform or local), and its "
        "passthrough file beside it",
        "ctf": "expected particles with CTF estimates; their passthrough file (..._passthrough_particles.cs) belongs "
        "beside the file",
        "blob": "expected extracted particles; their passthrough file (..._passthrough_particles.cs) belongs beside "
        "the file",
    }.get(kind, "give the particles as cryoSPARC wrote them")
