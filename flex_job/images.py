"""Reading particle images from MRC stacks: only the slices wanted, memory bounded however long the run."""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flex_job.consensus import Consensus

__all__ = ["ImageReader", "StackHeader", "read_header", "stack_problems"]

HEADER_BYTES = 1024
# MRC2014 modes that hold real images; 12 is the float16 of RELION 4 and later.
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
OPEN_FILES = 64
CHECKED_IMAGES = 64
TOLD_STACKS = 5


@dataclass(frozen=True)
class StackHeader:
    """What is needed to find one image in an MRC stack; `size_bytes` is the file's real length."""

    count: int
    height: int
    width: int
    dtype: np.dtype
    offset_bytes: int
    size_bytes: int

    @property
    def image_bytes(self) -> int:
        return self.height * self.width * self.dtype.itemsize

    @property
    def complete(self) -> bool:
        return self.size_bytes >= self.offset_bytes + self.count * self.image_bytes


def read_header(path: Path) -> StackHeader:
    """Parse an MRC header of either byte order. Raises ValueError, with the path, for what is not an MRC stack."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image stack; expected the file named in the particle list") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if len(raw) < HEADER_BYTES:
        raise ValueError(f"{path}: {size} bytes, shorter than an MRC header of {HEADER_BYTES}; copy the stack again")
    for order in "<>":
        width, height, count, mode = struct.unpack(f"{order}4i", raw[:16])
        (extended,) = struct.unpack(f"{order}i", raw[92:96])
        if mode in MODES and min(width, height, count) > 0 and max(width, height) < 65536 and extended >= 0:
            dtype = np.dtype(order + MODES[mode])
            return StackHeader(count, height, width, dtype, HEADER_BYTES + extended, size)
    raise ValueError(
        f"{path}: not an MRC image stack (size {width} x {height} x {count}, mode {mode}); "
        f"expected positive sizes and one of the modes {', '.join(map(str, MODES))}"
    )


def stack_problems(
    stack_paths: Sequence[Path],
    stack_index: NDArray[np.integer],
    image_index: NDArray[np.integer],
    boxes: NDArray[np.integer],
) -> list[str]:
    """What is wrong with the stacks that particles point at; `boxes` (n,) is the box each particle should have.

    A problem that many stacks share is told for the first few, with the number of the others.
    """
    problems: list[str] = []
    order = np.argsort(stack_index, kind="stable")
    starts = np.searchsorted(stack_index[order], np.arange(len(stack_paths) + 1))
    for number, path in enumerate(stack_paths):
        members = order[starts[number] : starts[number + 1]]
        if not len(members):
            continue
        try:
            header = read_header(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if not header.complete:
            held = max(0, (header.size_bytes - header.offset_bytes) // header.image_bytes)
            problems.append(
                f"{path}: truncated, {held} of the {header.count} images its header promises are there; copy it again"
            )
        for box in np.unique(boxes[members]):
            if (header.height, header.width) != (box, box):
                problems.append(
                    f"{path}: images of {header.height} x {header.width} pixels; expected {box} x {box} as the optics "
                    "group says; correct the box in the particle list or extract the particles again"
                )
        index = image_index[members]
        for wrong in (index.min(), index.max()):
            if not 0 <= wrong < header.count:
                problems.append(
                    f"{path}: particle image number {wrong + 1} is asked for, the stack holds {header.count} "
                    "(numbers start at 1); the particle list and the stack do not belong together"
                )
                break
    if len(problems) > TOLD_STACKS:
        problems[TOLD_STACKS:] = [f"... and {len(problems) - TOLD_STACKS} more problems with image stacks like these"]
    return problems


class ImageReader:
    """Reads particle images by particle number. Threads may share one; headers are parsed once per file."""

    def __init__(self, consensus: Consensus) -> None:
        self._consensus = consensus
        self._headers: dict[int, StackHeader] = {}
        self._files: OrderedDict[int, int] = OrderedDict()  # stack -> file descriptor, least recently used first
        self._lock = threading.Lock()

    def read(self, index: NDArray[np.integer] | Sequence[int]) -> NDArray[np.float32]:
        """Images of the particles at `index`, in that order: float32 (b, box, box), rows y, as they are on disk.

        Raises ValueError when the particles are of several optics groups, or when a stack does not hold an image.
        """
        particles = np.asarray(index, dtype=np.int64)
        groups = np.unique(self._consensus.optics_index[particles])
        if len(groups) > 1:
            raise ValueError(f"particles of {len(groups)} optics groups in one call; read each group by itself")
        if not len(groups):
            return np.zeros((0, 0, 0), dtype=np.float32)
        box = self._consensus.optics[groups[0]].box
        stacks = self._consensus.stack_index[particles]
        numbers = self._consensus.image_index[particles]
        images = np.empty((len(particles), box, box), dtype=np.float32)
        with self._lock:
            for stack in np.unique(stacks):
                rows = np.flatnonzero(stacks == stack)
                # ascending order on disk: kind to spinning and networked storage
                self._read_stack(int(stack), rows[np.argsort(numbers[rows], kind="stable")], numbers, images)
        return images

    def check(self, sample: int = CHECKED_IMAGES, seed: int = 0) -> list[str]:
        """Problems of the stacks and pixel sizes, and values that are not finite in a seeded sample of images."""
        consensus = self._consensus
        problems = self.optics_problems()
        boxes = np.array([group.box for group in consensus.optics])[consensus.optics_index]
        found = stack_problems(consensus.stack_paths, consensus.stack_index, consensus.image_index, boxes)
        if found:
            return problems + found
        chosen = np.random.default_rng(seed).permutation(len(consensus))[:sample]
        broken = [number for number in np.sort(chosen) if not np.isfinite(self.read([number])).all()]
        if broken:
            names = ", ".join(self._name(number) for number in broken[:3])
            problems.append(
                f"{len(broken)} of {len(chosen)} sampled images hold values that are not finite (NaN or infinite), "
                f"such as {names}; remove these particles or extract them again"
            )
        return problems

    def optics_problems(self) -> list[str]:
        """Optics groups whose pixel size is not positive."""
        return [
            f"optics group {group.name}: pixel size {group.pixel_size_A:g} A; expected a positive number"
            for group in self._consensus.optics
            if group.pixel_size_A <= 0
        ]

    def close(self) -> None:
        """Close the open files; reading opens them again."""
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def _name(self, particle: int) -> str:
        path = self._consensus.stack_paths[self._consensus.stack_index[particle]]
        return f"{self._consensus.image_index[particle] + 1}@{path}"

    def _read_stack(
        self, stack: int, rows: NDArray[np.integer], numbers: NDArray[np.integer], images: NDArray[np.float32]
    ) -> None:
        header, path = self._header(stack), self._consensus.stack_paths[stack]
        box = images.shape[1]
        if (header.height, header.width) != (box, box):
            raise ValueError(f"{path}: images of {header.height} x {header.width} pixels, expected {box} x {box}")
        descriptor = self._open(stack)
        for row in rows:
            number = int(numbers[row])
            if not 0 <= number < header.count:
                raise ValueError(f"{path}: no image {number + 1}, the stack holds {header.count}")
            raw = os.pread(descriptor, header.image_bytes, header.offset_bytes + number * header.image_bytes)
            if len(raw) < header.image_bytes:
                raise ValueError(f"{path}: truncated, image {number + 1} is not whole; copy the stack again")
            images[row] = np.frombuffer(raw, dtype=header.dtype).reshape(box, box)

    def _header(self, stack: int) -> StackHeader:
        if stack not in self._headers:
            self._headers[stack] = read_header(self._consensus.stack_paths[stack])
        return self._headers[stack]

    def _open(self, stack: int) -> int:
        if stack not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[stack] = os.open(self._consensus.stack_paths[stack], os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(stack)
        return self._files[stack]
