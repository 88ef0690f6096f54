"""RELION's command-line flags for an External job, as its pipeliner passes them (3.1, 4.0 and 5.0 alike).

Light on purpose: the command line imports it before anything heavy.
"""

from __future__ import annotations

__all__ = ["IGNORED_FLAGS", "INPUT_FLAGS", "THREADS_FLAG"]

# input kind of job_specs -> flag. RELION's External job has one map, one mask and one particle input; a trained
# model travels as one of its ten label/value rows.
INPUT_FLAGS = {"particles": "in_parts", "map": "in_3dref", "mask": "in_mask", "model": "in_model"}

# passed by RELION when its form has them filled in; nothing here needs them
IGNORED_FLAGS = ("in_movies", "in_mics", "in_coords", "pipeline_control")

THREADS_FLAG = "j"
