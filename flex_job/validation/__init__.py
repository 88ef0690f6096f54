"""Is the motion real? Held-out likelihood of a flexible against a rigid model, null experiments, and a verdict."""

from __future__ import annotations

from flex_job.validation.compare import Comparison, compare
from flex_job.validation.null import simulate_rigid
from flex_job.validation.stage import validate, write_verdict
from flex_job.validation.verdict import Estimate, Verdict, estimate, judge

__all__ = [
    "Comparison",
    "Estimate",
    "Verdict",
    "compare",
    "estimate",
    "judge",
    "simulate_rigid",
    "validate",
    "write_verdict",
]
