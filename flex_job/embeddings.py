"""Embeddings of the particles that another program found, as starting latents: cryoDRGN's, RECOVAR's, or any array.

Rows are the particles in the order of the particle file. Read are
- cryoDRGN's z.N.pkl: two pickles one after the other, the means (n, K) and the logarithms of the variances; the first;
- RECOVAR's model/zdim_N/latent_coords.npy, and the older model/embeddings.pkl, a dict of dicts by number of dimensions
  (`latent_coords`, before that `zs`); particles that RECOVAR was not given have rows of NaN in both;
- an .npy file of (n, K), or an .npz file with one such array, or with one under a usual name.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import Consensus
from flex_job.input_files import opened_input, read_input
from flex_job.npy_header import MAGIC, read_npy_header
from flex_job.plain_pickle import load_plain_pickle
from flex_job.problems import InputProblems, one_line
from job_specs.parameters import TrainParameters

__all__ = ["given_embedding", "read_embedding"]

EXPECTED = "an embedding of the particles: z.N.pkl of cryoDRGN, latent_coords.npy of RECOVAR, or an .npy or .npz array"
MOST_BYTES = 1 << 30  # a million particles of 128 dimensions take half of it
MOST_DIMENSIONS = 1024
LARGEST = 1e9
NAMES = ("latent_coords", "zs", "z", "z_mu", "embedding", "embeddings", "latents")


def given_embedding(
    parameters: TrainParameters, consensus: Consensus | None, say: Callable[[str], None]
) -> NDArray[np.float64] | None:
    """The starting latents in the file that `parameters` name, None where that is not there (which is told with the
    other parameters) or not asked for. Raises InputProblems as `read_embedding` does; without a consensus what the
    file alone can tell."""
    path = Path(parameters.latent_file)
    asked = parameters.latent_file and parameters.latent_start == "columns" and parameters.latent_dims
    if not asked or not path.is_file():
        return None
    return read_embedding(path, None if consensus is None else len(consensus), parameters.latent_dims, say)


def read_embedding(
    path: Path, particles: int | None, latent_dims: int, say: Callable[[str], None]
) -> NDArray[np.float64]:
    """Latents (n, latent_dims), float64, from the file at `path`.

    Of more dimensions the leading principal components are taken, which is told with `say`. `particles` is how many
    there are, None where that is not known. Raises InputProblems with all that is wrong.
    """
    try:
        values = _two_dimensional(_array_in(path, latent_dims))
    except ValueError as error:
        text = str(error)
        raise InputProblems([text if text.startswith(f"{path}: ") else one_line(f"{path}: {text}")]) from error
    count, dims = values.shape
    found = []
    if particles is not None and count != particles:
        found.append(f"{count} rows; expected {particles}, one for each particle in the order of the particle file")
    if dims < latent_dims:
        found.append(f"{dims} dimensions; expected at least latent_dims, which is {latent_dims}; lower that")
    bad = int((~(np.abs(values) <= LARGEST).all(axis=1)).sum())  # NaN is not <= anything
    if bad:
        found.append(
            f"{bad} of {count} rows are empty or not numbers of at most {LARGEST:g} in size; expected one for each "
            "particle: leave out the particles that the embedding was not made from"
        )
    if not found:
        values = values - values.mean(axis=0)
        varying = np.linalg.matrix_rank(values.T @ values, hermitian=True) if count else 0
        if varying < latent_dims:
            found.append(f"{varying} of its {dims} dimensions vary; expected latent_dims, which is {latent_dims}")
    if found:
        raise InputProblems([f"{path}: {text}" for text in found])
    if dims > latent_dims:
        values, kept = _principal(values, latent_dims)
        say(
            f"{path}: {dims} dimensions, reduced to the {latent_dims} of latent_dims by principal components, which "
            f"hold {100 * kept:.0f} % of the variance"
        )
    return values


def _principal(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], float]:
    """The leading principal components (n, count) of centred values, and the share of the variance that they hold."""
    variances, axes = np.linalg.eigh(values.T @ values)
    return values @ axes[:, : -count - 1 : -1], float(variances[-count:].sum() / variances.sum())


def _two_dimensional(array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype}; expected numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not 1 <= array.shape[1] <= MOST_DIMENSIONS:
        raise ValueError(f"an array of shape {array.shape}; expected particles x dimensions")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64)


def _array_in(path: Path, latent_dims: int) -> NDArray[Any]:
    """The array of the embedding, of any shape and type. What a file is, its first bytes say. Raises ValueError."""
    with opened_input(path, "file", EXPECTED, MOST_BYTES) as file:
        magic = file.read(6)
    if magic == MAGIC:
        return _npy(read_input(path, "file", EXPECTED, MOST_BYTES))
    if magic[:4] == b"PK\x03\x04":
        return _chosen(_npz(path), latent_dims)
    content = load_plain_pickle(path, EXPECTED)
    return content if isinstance(content, np.ndarray) else _chosen(content, latent_dims)


def _npy(content: bytes) -> NDArray[Any]:
    """The array in an .npy file's bytes; nothing is allocated that is not there."""
    file = io.BytesIO(content)
    try:
        shape, by_columns, dtype = read_npy_header(file)
    except ValueError as error:
        raise ValueError(f"not a sound .npy file ({error}); expected {EXPECTED}; save it again") from error
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(
            f"an .npy file whose header tells of shape {shape} and type {dtype}, with {len(content) - file.tell()} "
            "bytes; expected as many numbers as it tells of; copy it again"
        )
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file."""
    try:
        with opened_input(path, "file", EXPECTED, MOST_BYTES) as file, zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"{size} bytes unpacked; expected {EXPECTED}, of at most {MOST_BYTES} bytes")
            return {
                name.removesuffix(".npy"): _npy(archive.read(name))
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"not a sound .npz file ({error}); expected {EXPECTED}; save it again") from error


def _chosen(content: Mapping[Any, Any], latent_dims: int) -> NDArray[Any]:
    """The embedding among several entries: the only array, or the first under a usual name. Where that has one for
    each number of dimensions, as RECOVAR keeps them, the one of `latent_dims`, else the next larger, else the largest.
    """
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray) and value.ndim in (1, 2)}
    usual = [content[name] for name in NAMES if isinstance(content.get(name), (np.ndarray, dict))]
    if not usual and len(arrays) == 1:
        return next(iter(arrays.values()))
    if not usual:
        names = ", ".join(sorted(map(str, content))[:20]) or "nothing"
        raise ValueError(f"it holds {names}; expected one array, or one named {', '.join(NAMES)}; save that alone")
    if isinstance(usual[0], np.ndarray):
        return usual[0]
    by_size = {int(name): value for name, value in usual[0].items() if isinstance(value, np.ndarray) and _whole(name)}
    if not by_size:
        raise ValueError(f"no arrays by number of dimensions in it; expected {EXPECTED}; export it again")
    return by_size[min(by_size, key=lambda size: (size < latent_dims, abs(size - latent_dims)))]


def _whole(name: object) -> bool:
    return isinstance(name, int) or (isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 6)
