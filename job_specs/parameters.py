"""Every parameter of every job: type, default, unit, bounds, help. This is the one list there is.

Names are those users of 3DFlex know where such a name exists. Lengths are angstroms (A) or pixels (px).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from job_specs.parameter import check, parameter, settled

__all__ = [
    "GenerateParameters",
    "MeshParameters",
    "PrepParameters",
    "ReconstructParameters",
    "RefineParameters",
    "ResolutionParameters",
    "RunParameters",
    "SelectParameters",
    "SimulateParameters",
    "TrainParameters",
    "ValidateParameters",
    "names_in",
    "problems",
    "ranges_in",
]


@dataclass(frozen=True)
class PrepParameters:
    """How particles are made ready for training."""

    training_box: int = parameter(
        128,
        help="Box that particles are Fourier-cropped to for training; never above the consensus box, 0 keeps that",
        unit="px",
        bounds=(0, 1024),
        tier="main",
        cryosparc="training box",
    )
    half_sets: str = parameter(
        "consensus",
        help="Half-sets of the consensus refinement; random draws a seeded split where the input has none",
        choices=("consensus", "random"),
        tier="main",
    )
    contrast: str = parameter(
        "auto",
        help="Sign of the images: auto compares them with the consensus map, invert turns them over",
        choices=("auto", "keep", "invert"),
    )
    per_particle_scale: bool = parameter(True, help="Fit each particle's contrast to the consensus map")
    noise_particles: int = parameter(
        2000, help="Particles that the noise spectrum is estimated from", bounds=(10, 1_000_000)
    )
    scratch: str = parameter(
        "", help="Fast local folder for the cache of prepared particles; empty uses the job directory", tier="main"
    )


@dataclass(frozen=True)
class MeshParameters:
    """The mask and the tetrahedral mesh that carries the motion."""

    mask_lowpass: float = parameter(
        10.0,
        help="Low-pass filter of the map before a mask is made from it",
        unit="A",
        bounds=(1, 200),
        cryosparc="mask low-pass",
    )
    mask_threshold: float = parameter(
        0.0,
        help="Density threshold of the automatic mask, in the units of the map; 0 finds one",
        bounds=(0, None),
        cryosparc="mask threshold",
    )
    mask_dilate: float = parameter(
        2.0, help="Growth of the automatic mask", unit="A", bounds=(0, 100), cryosparc="mask dilate"
    )
    mask_soft: float = parameter(
        5.0, help="Width of the mask's soft edge", unit="A", bounds=(0, 100), cryosparc="mask pad"
    )
    tetra_cells: int = parameter(
        20,
        help="Mesh cells across the box: their edge is the box side divided by this",
        bounds=(4, 80),
        tier="main",
        cryosparc="cells across the box",
    )
    rigidity_min: float = parameter(
        0.5,
        help="Rigidity weight of cells where density is weakest; the densest have 1",
        bounds=(0, 1),
        cryosparc="minimum rigidity",
    )
    stiffen_low_density: bool = parameter(
        False,
        help="Give cells of low density more rigidity instead of less",
        cryosparc="stiffen low density",
    )
    zero_motion_mask: str = parameter(
        "",
        help="MRC mask of what must not move (micelle, nanodisc); empty lets everything move",
        tier="main",
        file=True,
    )
    segmentation: str = parameter(
        "",
        help="MRC volume of whole numbers that cuts the mesh into segments; empty keeps one mesh",
        cryosparc="segmentation",
        file=True,
    )
    fuse: str = parameter(
        "", help="Pairs of segments that stay joined at their boundary, as in 1-2,2-3", cryosparc="segment fusing"
    )
    rigid_segments: str = parameter(
        "", help="Segments that move as rigid bodies, as in 1,3", cryosparc="rigid segments"
    )
    mesh: str = parameter(
        "", help="Mesh to use instead of building one: a mesh.npz of ours or a cryoSPARC flex_mesh file", file=True
    )


@dataclass(frozen=True)
class TrainParameters:
    """The motion model and how it is learned."""

    latent_dims: int = parameter(
        0,
        help="Number of latent coordinates of each particle",
        bounds=(1, 16),
        auto=2,
        tier="main",
        cryosparc="number of latents",
    )
    rigidity: float = parameter(
        0.0,
        help="Strength of the prior for locally rigid motion, lower allows more bending",
        bounds=(0.001, 1000),
        auto=4.0,
        tier="main",
        cryosparc="rigidity",
    )
    epochs: int = parameter(
        0,
        help="Passes through all particles",
        bounds=(1, 1000),
        auto=12,
        tier="main",
        cryosparc="epochs",
    )
    latent_columns: str = parameter(
        "",
        help="Columns of the STAR file that hold the starting latents, separated by commas; empty finds its own",
        tier="main",
        cryosparc="latents from input",
    )
    latent_file: str = parameter(
        "",
        help="Starting latents that another program found: z.pkl of cryoDRGN, latent_coords.npy of RECOVAR, or any "
        ".npy or .npz array of particles x dimensions, in the particles' order; reduced to latent_dims",
        file=True,
    )
    latent_start: str = parameter(
        "linear",
        help="Starting latents: from a linear subspace model, zero, random, or columns: those of latent_columns or "
        "latent_file (implied by these)",
        choices=("linear", "zero", "random", "columns"),
    )
    latent_method: str = parameter(
        "gauss_newton",
        help="How latents are improved: Gauss-Newton steps, or the paper's coordinate descent",
        choices=("gauss_newton", "coordinate_descent"),
    )
    noise_injection: float = parameter(
        1.0,
        help="Noise added to the latents while the flow learns, in posterior standard deviations",
        bounds=(0, 10),
        cryosparc="noise injection",
    )
    flow_layers: int = parameter(3, help="Hidden layers of the flow network", bounds=(1, 8), cryosparc="layers")
    flow_units: int = parameter(64, help="Units in each hidden layer", bounds=(4, 1024), cryosparc="hidden units")
    optimizer: str = parameter(
        "adam", help="Optimiser of the flow: Adam, or SGD with Nesterov momentum", choices=("adam", "nesterov")
    )
    flow_learning_rate: float = parameter(
        3e-3, help="Learning rate of the flow", bounds=(1e-8, 1), cryosparc="learning rate (flow)"
    )
    fixed_latent_epochs: int = parameter(
        2, help="First epochs in which the starting latents stay as they are", bounds=(0, 1000)
    )
    map_every: int = parameter(
        2, help="Every how many epochs the canonical map is solved for; 0 keeps the consensus map", bounds=(0, 1000)
    )
    held_out: float = parameter(
        0.05,
        help="Fraction of the particles that flow and map are not fitted to, to test the motion on; 0 for none",
        bounds=(0, 0.2),
    )
    independent_halves: bool = parameter(
        False, help="Train two motion models, one per half-set, so that the half-maps share none; takes no longer"
    )
    refine_poses: bool = parameter(
        False,
        help="After the training refine angles and shifts of each particle under its motion; what is found of their "
        "errors comes from the images, so exact poses stay",
    )
    refine_scale: bool = parameter(
        False, help="After the training refine the contrast of each particle with its own moved map"
    )
    batch: int = parameter(100, help="Particles in a minibatch", bounds=(1, 100_000))
    band_start: float = parameter(
        0.3, help="Band limit at the first epoch, as a fraction of the training box's Nyquist", bounds=(0.02, 1)
    )
    band_end: float = parameter(
        0.0, help="Final band limit, as a fraction of the training box's Nyquist", bounds=(0.02, 1), auto=0.8
    )
    band_epochs: float = parameter(0.9, help="Fraction of the epochs over which the band limit rises", bounds=(0, 1))


@dataclass(frozen=True)
class ValidateParameters:
    """How a motion is put to the test."""

    nulls: int = parameter(
        5,
        help="Simulations without motion, at the particles' own poses, CTFs and noise, that are put through the same",
        bounds=(0, 1000),
    )
    sample: int = parameter(10_000, help="Particles that are used, drawn at random; 0 for all", bounds=(0, 10_000_000))


@dataclass(frozen=True)
class ReconstructParameters:
    """Half-maps through the motion, and the same without motion as baseline."""

    reconstruct_box: int = parameter(
        0, help="Box of the reconstruction; 0 keeps the consensus box", unit="px", bounds=(0, 2048)
    )
    max_iterations: int = parameter(
        40,
        help="Most iterations of the half-maps, a pass through the particles each; the tolerance usually stops earlier",
        bounds=(1, 1000),
        cryosparc="L-BFGS iterations",
    )
    tolerance: float = parameter(
        0.01, help="Stop when an iteration changes no shell of the half-maps' FSC by more than this", bounds=(0, 1)
    )
    oversampling: int = parameter(2, help="Fourier padding of projections and of the rigid baseline", bounds=(1, 4))
    bfactor: float = parameter(
        0.0,
        help="B-factor for sharpening, negative sharpens; 0 fits one (Guinier)",
        unit="A^2",
        bounds=(-2000, 2000),
    )


@dataclass(frozen=True)
class ResolutionParameters:
    """What is said of the half-maps' resolution, beside their FSC in the mask."""

    fsc_masks: str = parameter(
        "", help="MRC masks, separated by commas, in each of which the FSC is computed too, as of a flexible domain"
    )
    model_fsc: str = parameter(
        "",
        help="Atomic model in the frame of the map, PDB or mmCIF: for the map-model FSC, and to move in the report",
        file=True,
    )
    locres_sampling: float = parameter(
        25.0,
        help="Distance of the spheres in which the local resolution is found, as RELION's; 0 leaves it out",
        unit="A",
        bounds=(0, 200),
    )


@dataclass(frozen=True)
class GenerateParameters:
    """Maps, atomic models and the motion itself along the latents."""

    latents: str = parameter(
        "",
        help="CSV or STAR file with columns flexLatent1, ... and one row per frame; wins over path",
        tier="main",
        file=True,
    )
    path: str = parameter(
        "latents",
        help="Frames along each latent in turn; or one path through the clusters of the particles; or through where "
        "they are densest, from one end to the other (density); or at particles drawn at random",
        choices=("latents", "clusters", "density", "particles"),
        tier="main",
    )
    frames: int = parameter(
        11,
        help="Frames of each path, from the 5th to the 95th percentile",
        bounds=(2, 1000),
        tier="main",
        cryosparc="frames",
    )
    path_clusters: int = parameter(5, help="Clusters that path clusters goes through", bounds=(2, 100))
    atomic_model: str = parameter(
        "",
        help="Atomic model, PDB or mmCIF, built into the map that is moved: it is moved into every frame",
        tier="main",
        file=True,
    )
    model_frame: int = parameter(
        -1,
        help="Frame of this series (0 is the first) that atomic_model was built in, from which it is taken back first; "
        "-1 for the map that is moved",
        bounds=(-1, 9999),
    )
    model_latents: str = parameter(
        "",
        help="Latents that atomic_model was built at, separated by commas, where it was built in none of these frames",
    )
    rigid_residues: bool = parameter(
        True, help="Move each residue of atomic_model as a rigid body, in agreement with those bound to it"
    )
    model_files: bool = parameter(False, help="Write the models one by one as well: frame_000.cif and so on")
    frame_box: int = parameter(
        0, help="Box of the frames, cropped in Fourier space; 0 keeps the map's", unit="px", bounds=(0, 2048)
    )
    crop: bool = parameter(
        False, help="Cut the frames to the smallest box that holds the moving molecule; the MRC origin says where it is"
    )
    sharpened: bool = parameter(
        True, help="Move the sharpened map; no takes the mean of the unfiltered half-maps beside the model"
    )
    deformation: bool = parameter(
        False,
        help="Write the motion itself: the mesh's displacements per frame (VTU, for ParaView), and those of the voxels "
        "in A as MRC maps along x, y and z",
    )
    movie: bool = parameter(True, help="Draw series.gif, and series.mp4 where there is ffmpeg")
    zip: bool = parameter(False, help="Pack maps, models, tables and script into frames.zip")


@dataclass(frozen=True)
class SelectParameters:
    """Subsets of the particles by their latents."""

    clusters: int = parameter(
        5,
        help="Clusters that particles are divided into, numbered along the first latent; 1 keeps them together",
        bounds=(1, 999),
        tier="main",
    )
    latents_range: str = parameter(
        "",
        help="Latents to keep, low:high for each in turn, as in -1:0.5,:1; a side left empty is open",
        tier="main",
    )
    gain_range: str = parameter(
        "",
        help="Likelihood gain over a rigid map to keep in nats (flexLikelihoodGain), low:high, as in 0:; a side left "
        "empty is open",
    )
    min_probability: float = parameter(
        0.0,
        help="Leave out particles that belong to their cluster, by their latents' uncertainty, less surely than this",
        bounds=(0, 1),
        tier="main",
    )


@dataclass(frozen=True)
class RunParameters:
    """How the job runs; none of these changes what is computed, but for the seed (and tf32, by rounding)."""

    config: str = parameter(
        "", help="YAML file with values for any parameter; flags win over it", tier="main", file=True
    )
    threads: int = parameter(1, help="CPU threads, shared by the processes that the job starts", bounds=(1, 1024))
    devices: str = parameter(
        "", help="GPUs such as 0,1, or cpu, or cpu:2 for two CPU processes; empty for all visible GPUs, else the CPU"
    )
    tf32: bool = parameter(
        False, help="Let a GPU multiply with 10-bit mantissas where that does not show in a map; the CPU never does"
    )
    seed: int = parameter(0, help="Seed of everything random", bounds=(0, 2**31 - 1))
    max_hours: float = parameter(
        0.0,
        help="Wall-clock time after which the job saves its work and ends by itself, to be continued; 0 is no limit",
        unit="h",
        bounds=(0, 10_000),
    )
    restart: bool = parameter(False, help="Begin anew in a job directory that holds earlier work")


@dataclass(frozen=True)
class SimulateParameters:
    """A simulated data set of a moving molecule, as a RELION project."""

    motion: str = parameter(
        "one_hinge",
        help="What moves: one Fab arm of an antibody, both independently, or nothing; or two or three domains of a "
        "spliceosome",
        choices=("one_hinge", "two_hinges", "none", "two_domains", "three_domains"),
        tier="main",
    )
    structure: str = parameter(
        "", help="Structure (PDB or mmCIF) to simulate in place of these; domains says what moves", file=True
    )
    domains: str = parameter(
        "",
        help="Chains, with or without residues, that turn together and by how many degrees either way, as in "
        "A+B:15; C(20-110):10; of the structure, or of the spliceosome where none is given",
    )
    micelle: bool = parameter(False, help="Put the part that does not move into a detergent micelle")
    two_states: bool = parameter(False, help="Particles at either end of each motion and none between")
    particles: int = parameter(6000, help="Number of particles", bounds=(10, 10_000_000), tier="main")
    box: int = parameter(64, help="Box of the particle images", unit="px", bounds=(16, 1024), tier="main")
    pixel_size: float = parameter(4.0, help="Pixel size", unit="A", bounds=(0.1, 20), tier="main")
    snr: float = parameter(
        0.1,
        help="Signal-to-noise ratio: variance of the signal over that of the noise",
        bounds=(1e-6, 1e6),
        tier="main",
    )
    pose_error: float = parameter(
        0.0, help="Standard deviation of the poses' errors, about each axis", unit="degrees", bounds=(0, 180)
    )
    seed: int = parameter(0, help="Seed of everything random", bounds=(0, 2**31 - 1))


@dataclass(frozen=True)
class RefineParameters:
    """All groups of a run. A job shows the groups that it uses; the others stay at their defaults."""

    prep: PrepParameters = field(default_factory=PrepParameters)
    mesh: MeshParameters = field(default_factory=MeshParameters)
    train: TrainParameters = field(default_factory=TrainParameters)
    validate: ValidateParameters = field(default_factory=ValidateParameters)
    reconstruct: ReconstructParameters = field(default_factory=ReconstructParameters)
    resolution: ResolutionParameters = field(default_factory=ResolutionParameters)
    generate: GenerateParameters = field(default_factory=GenerateParameters)
    select: SelectParameters = field(default_factory=SelectParameters)
    run: RunParameters = field(default_factory=RunParameters)


def names_in(text: str) -> tuple[str, ...]:
    """The names in a comma-separated parameter such as `latent_columns`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def ranges_in(text: str) -> tuple[tuple[float, float], ...]:
    """(low, high) per latent of a parameter such as `latents_range`; an empty side is infinite.

    Raises ValueError for what is not low:high, or holds no number between them.
    """
    found = []
    for part in text.split(",") if text.strip() else ():
        low, colon, high = part.partition(":")
        try:
            limits = float(low.strip() or "-inf"), float(high.strip() or "inf")
        except ValueError:
            limits = math.nan, math.nan
        if not colon or not limits[0] < limits[1]:
            raise ValueError(f"{part.strip()!r} was given; expected low:high with low below high, as in -1:0.5")
        found.append(limits)
    return tuple(found)


def problems(parameters: RefineParameters) -> list[str]:
    """Everything wrong with the values, one line each: declarations first, then what must fit together."""
    train = parameters.train
    found = [
        line
        for group in (parameters.prep, parameters.mesh, train, parameters.reconstruct, parameters.generate)
        for line in check(group)
    ]
    found += check(parameters.resolution)
    found += check(parameters.select)
    found += check(parameters.validate)
    try:
        ranges_in(parameters.select.latents_range)
    except ValueError as error:
        found.append(f"latents_range: {error}")
    try:
        if len(ranges_in(parameters.select.gain_range)) > 1:
            found.append(f"gain_range: {parameters.select.gain_range!r} was given; expected one range low:high")
    except ValueError as error:
        found.append(f"gain_range: {error}")
    found += check(parameters.run)
    band_end = settled(train).band_end
    if train.band_start > band_end:
        found.append(f"band_start: {train.band_start} was given; expected at most band_end, which is {band_end}")
    columns = names_in(train.latent_columns)
    if train.latent_start == "columns" and not columns and not train.latent_file:
        found.append(
            "latent_start: columns was given without latent_columns or latent_file; name the columns of the STAR file, "
            "or a file"
        )
    if columns and train.latent_file:
        found.append("latent_columns and latent_file were both given; expected one of them")
    if train.latent_dims == 0 and train.latent_file:
        found.append("latent_dims: auto with a latent_file; expected how many latents to start from, it is no choice")
    elif columns and train.latent_start == "columns" and len(columns) != train.latent_dims:
        found.append(
            f"latent_columns: {len(columns)} given ({', '.join(columns)}); expected one per latent, "
            f"and latent_dims is {train.latent_dims}"
        )
    return found
