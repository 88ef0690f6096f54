"""The jobs from Python, for notebooks: seven functions, the same engine, files and parameters as the command line.

    from integration.python import build_mesh, generate, prepare, read_consensus, reconstruct, train, validate

    consensus = read_consensus("Refine3D/job021/run_data.star", mask="MaskCreate/job022/mask.mrc")
    run = prepare(consensus, "notebook/run1", latent_dims=2, rigidity=4, threads=8)
    mesh = build_mesh(run)
    model = train(run)
    print(validate(run))
    rigid, flex = reconstruct(run)
    maps = generate(run, frames=11)

What is done is kept in the run's folder: the same lines again take it from there, after a crash too.
"""

from __future__ import annotations

from integration.python.jobs import (
    Reconstruction,
    build_mesh,
    generate,
    prepare,
    read_consensus,
    reconstruct,
    train,
    validate,
)

__all__ = [
    "Reconstruction",
    "build_mesh",
    "generate",
    "prepare",
    "read_consensus",
    "reconstruct",
    "train",
    "validate",
]
