"""The options of `flex-job cryosparc refine`. Light on purpose: the command line imports it before anything heavy."""

from __future__ import annotations

__all__ = ["HELP", "OPTIONS"]

HELP = (
    "Flexible refinement as an external job of CryoSPARC: connects to the instance, creates the job with its inputs "
    "and outputs, runs it on this machine, streams its progress into the event log, and saves particles with latents, "
    "volumes and mesh. The login is the one of `python -m cryosparc.tools login`, or comes from CRYOSPARC_EMAIL and "
    "CRYOSPARC_PASSWORD (and CRYOSPARC_LICENSE_ID for version 4)."
)

# flag -> (metavar, help)
OPTIONS = {
    "project": ("P3", "Project  [required]"),
    "workspace": ("W1", "Workspace  [required]"),
    "particles": (
        "J12.particles",
        "Particles of a 3D refinement, or of a 3D Variability job to start from its latents",
    ),
    "volume": ("J12.volume", "The refined volume"),
    "mask": ("J13.mask", "Mask of the molecule; without one it is made from the map"),
    "job": ("J42", "Go on with the external job of an earlier call, in its folder"),
    "title": ("TEXT", "Title of the job"),
    "url": ("URL", "Address of the instance, such as http://host:39000; by default CRYOSPARC_BASE_URL"),
    "o": ("FOLDER", "Where to work when this machine does not see the job's folder; results are then uploaded"),
}
