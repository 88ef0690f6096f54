"""A training put to the test: its motion against none, each with a map and pose corrections of its own."""

from __future__ import annotations

from dataclasses import dataclass

from flex_job.model import FlexModel
from flex_job.train import Trainer
from flex_job.validation.gain import Gain, held_out_gain
from flex_job.validation.sides import Side, make_side, unused

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Both models and what one gains over the other."""

    flex: Side
    rigid: Side
    gain: Gain


def compare(trainer: Trainer, model: FlexModel, rigid: Side | None = None) -> Comparison:
    """`trainer` is one for the particles that `model` was trained on, with the same seed and parameters. `rigid` is
    that side where an earlier comparison on the same particles has made it. Together."""
    flow, events = model.flow.to(trainer.device), trainer.events
    if rigid is None:
        with events.part(0.0, 0.4, "map without motion"):
            with events.part(0.0, 0.3):
                density = trainer.solved(left_out=unused(trainer))
            with events.part(0.3, 1.0):
                rigid = make_side(trainer, density, None, model.latents)
    with events.part(0.4, 0.8, "map with motion"):
        flex = make_side(trainer, model.map, flow, model.latents)
    with events.part(0.8, 1.0, "images that were kept aside"):
        gain = held_out_gain(trainer, flex, rigid)
    flow.cpu()
    return Comparison(flex, rigid, gain)
