"""The files of a finished RELION 3.1 refinement, written for simulated particles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import starfile
from scipy.spatial.transform import Rotation

from flex_job.consensus import Consensus
from flex_job.files import path_aside
from flex_job.simulation.maps import ConsensusMaps
from flex_job.volume import write_volume

__all__ = ["MASK_JOB", "REFINE_JOB", "write_refinement"]

REFINE_JOB = "Refine3D/job001"
MASK_JOB = "MaskCreate/job002"


def write_refinement(folder: Path, refined: Consensus, maps: ConsensusMaps, resolution_A: float) -> None:
    """Write Refine3D/job001, MaskCreate/job002 and default_pipeline.star into `folder`; both job folders exist."""
    job, pixel = folder / REFINE_JOB, maps.exact.pixel_size_A
    write_volume(job / "run_class001.mrc", maps.filtered.data, pixel)
    for half, volume in enumerate(maps.half_maps, start=1):
        write_volume(job / f"run_half{half}_class001_unfil.mrc", volume.data, pixel)
    write_volume(folder / MASK_JOB / "mask.mrc", maps.mask.data, pixel)
    _write_star(job / "run_data.star", {"optics": _optics_table(refined), "particles": _particle_table(refined)})
    general = {
        "rlnReferenceDimensionality": 3,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": maps.exact.box,
        "rlnPixelSize": pixel,
        "rlnCurrentResolution": resolution_A,
        "rlnNrClasses": 1,
        "rlnNrGroups": 1,
    }
    classes = pd.DataFrame(
        {"rlnReferenceImage": [f"{REFINE_JOB}/run_class001.mrc"], "rlnEstimatedResolution": [resolution_A]}
    )
    _write_star(job / "run_model.star", {"model_general": general, "model_classes": classes})
    optimiser = {
        "rlnOutputRootName": f"{REFINE_JOB}/run",
        "rlnModelStarFile": f"{REFINE_JOB}/run_model.star",
        "rlnExperimentalDataStarFile": f"{REFINE_JOB}/run_data.star",
        "rlnSolventMaskName": f"{MASK_JOB}/mask.mrc",
        "rlnCtfDataArePhaseFlipped": int(any(group.phase_flipped for group in refined.optics)),
    }
    _write_star(job / "run_optimiser.star", {"optimiser_general": optimiser})
    for name in (REFINE_JOB, MASK_JOB):
        (folder / name / "RELION_JOB_EXIT_SUCCESS").touch()
    _write_star(folder / "default_pipeline.star", _pipeline_tables())


def _optics_table(refined: Consensus) -> pd.DataFrame:
    rows = []
    for number, group in enumerate(refined.optics, start=1):
        rows.append(
            {
                "rlnOpticsGroup": number,
                "rlnOpticsGroupName": group.name,
                "rlnVoltage": group.voltage_kV,
                "rlnSphericalAberration": group.spherical_aberration_mm,
                "rlnAmplitudeContrast": group.amplitude_contrast,
                "rlnImagePixelSize": group.pixel_size_A,
                "rlnImageSize": group.box,
                "rlnImageDimensionality": 2,
                "rlnBeamTiltX": group.beam_tilt_mrad[0],
                "rlnBeamTiltY": group.beam_tilt_mrad[1],
                "rlnMagMat00": group.magnification[0][0],
                "rlnMagMat01": group.magnification[0][1],
                "rlnMagMat10": group.magnification[1][0],
                "rlnMagMat11": group.magnification[1][1],
            }
        )
        for label, values in (("rlnOddZernike", group.odd_zernike), ("rlnEvenZernike", group.even_zernike)):
            if any(getattr(other, label[3:].replace("Zernike", "_zernike").lower()) for other in refined.optics):
                rows[-1][label] = "[" + ",".join(f"{value:.6f}" for value in values) + "]"
    return pd.DataFrame(rows)


def _particle_table(refined: Consensus) -> pd.DataFrame:
    # RELION's angles: from_euler("ZYZ", [rot, tilt, psi]) is the transpose of the map-to-view rotation
    rot, tilt, psi = Rotation.from_matrix(refined.rotations.transpose(0, 2, 1)).as_euler("ZYZ", degrees=True).T
    names = [f"Particles/{path.name}" for path in refined.stack_paths]
    return pd.DataFrame(
        {
            "rlnImageName": [
                f"{image + 1:06d}@{names[stack]}"
                for image, stack in zip(refined.image_index, refined.stack_index, strict=True)
            ],
            "rlnMicrographName": [f"Micrographs/mic_{stack + 1:03d}.mrc" for stack in refined.stack_index],
            "rlnAngleRot": rot,
            "rlnAngleTilt": tilt,
            "rlnAnglePsi": psi,
            "rlnOriginXAngst": refined.origins_A[:, 0],
            "rlnOriginYAngst": refined.origins_A[:, 1],
            "rlnDefocusU": refined.defocus_u_A,
            "rlnDefocusV": refined.defocus_v_A,
            "rlnDefocusAngle": np.rad2deg(refined.defocus_angle_rad),
            "rlnPhaseShift": np.rad2deg(refined.phase_shift_rad),
            "rlnCtfBfactor": refined.ctf_bfactor_A2,
            "rlnCtfScalefactor": refined.ctf_scale,
            "rlnOpticsGroup": refined.optics_index + 1,
            "rlnRandomSubset": refined.halves,
            "rlnGroupNumber": 1,
            "rlnClassNumber": 1,
            "rlnNormCorrection": 1.0,
        }
    )


def _pipeline_tables() -> dict[str, Any]:
    """Two finished jobs, as RELION 3.1 numbers them (process 10 Refine3D, 12 MaskCreate; status 2 finished)."""
    nodes = [
        (f"{REFINE_JOB}/run_data.star", 3),
        (f"{REFINE_JOB}/run_class001.mrc", 6),
        (f"{REFINE_JOB}/run_half1_class001_unfil.mrc", 10),
        (f"{MASK_JOB}/mask.mrc", 7),
    ]
    jobs = [(f"{REFINE_JOB}/", "None", 10, 2), (f"{MASK_JOB}/", "None", 12, 2)]
    edges = [(f"{Path(name).parent}/", name) for name, _ in nodes]
    return {
        "pipeline_general": {"rlnPipeLineJobCounter": 3},
        "pipeline_processes": pd.DataFrame(
            jobs,
            columns=[
                "rlnPipeLineProcessName",
                "rlnPipeLineProcessAlias",
                "rlnPipeLineProcessType",
                "rlnPipeLineProcessStatus",
            ],
        ),
        "pipeline_nodes": pd.DataFrame(nodes, columns=["rlnPipeLineNodeName", "rlnPipeLineNodeType"]),
        "pipeline_output_edges": pd.DataFrame(edges, columns=["rlnPipeLineEdgeProcess", "rlnPipeLineEdgeToNode"]),
    }


def _write_star(path: Path, tables: dict[str, Any]) -> None:
    with path_aside(path) as aside:
        starfile.write(tables, aside, overwrite=True)
        # starfile's own comment holds the time: the same seed shall give the same bytes
        lines = [line for line in aside.read_text().splitlines() if not line.startswith("#")]
        aside.write_text("\n".join(["# version 30001", "", *lines, ""]))
