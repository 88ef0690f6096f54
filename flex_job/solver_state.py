"""Where a linear solve stands, down to the particles of a half-done pass, and its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flex_job.checkpoint import Checkpoint
from flex_job.distributed import Group

__all__ = ["PartialSums", "SolverState", "load_solver_state", "save_solver_state"]


@dataclass
class PartialSums:
    """A pass through the particles that was interrupted: `done` (n,) bool says which went into the `sums`."""

    done: torch.Tensor
    sums: list[torch.Tensor]


@dataclass
class SolverState:
    """Where the iteration stands. Vectors (sets, n_voxels): the unknowns, the gradient of the data's loss, the last
    search direction and its product with the normal equations.

    `gradient` is None until the first pass has summed it, and `weight` (sets, m), the sums of squared transfers;
    `product` is None while the pass with `direction` is under way, `partial` is what this had summed when it was
    interrupted. `prior` (shells,) is in force in the next iteration, or was in the last; `agreement` (box // 2 + 1,) is
    the FSC of the last maps and `change` the most that one of its shells changed by in the last iteration.
    """

    values: torch.Tensor
    gradient: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    direction: torch.Tensor | None = None
    product: torch.Tensor | None = None
    prior: torch.Tensor | None = None
    agreement: torch.Tensor | None = None
    change: float = float("inf")
    iteration: int = 0
    converged: bool = False
    partial: PartialSums | None = None


def save_solver_state(checkpoint: Checkpoint, state: SolverState, voxels: torch.Tensor) -> None:
    """Keep the state of a solve for the map at `voxels` (flat indices)."""
    entries = {name: value for name, value in vars(state).items() if name != "partial"}
    checkpoint.save(entries | {"partial": state.partial and vars(state.partial), "voxels": voxels})


def load_solver_state(checkpoint: Checkpoint, voxels: torch.Tensor, group: Group) -> SolverState | None:
    """The state that was kept for the same voxels, on their device; None when there is none. Together."""
    saved = checkpoint.load(group)
    if saved is None or not torch.equal(saved.pop("voxels"), voxels.cpu()):
        return None
    entries: dict[str, Any] = _moved(saved, voxels.device)
    partial = entries.pop("partial")
    entries |= {name: saved[name] for name in ("prior", "agreement")}  # curves stay with the host
    return SolverState(**entries, partial=PartialSums(**partial) if partial else None)


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors, also those in lists and dicts, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return {name: _moved(item, device) for name, item in value.items()} if isinstance(value, dict) else value
