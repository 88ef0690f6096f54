"""Which particles belong together, and the order in which an epoch visits them.

Particle i belongs to virtual shard i % SHARDS, and a shard to one rank. The order goes round the shards, so that it
does not depend on the number of ranks and yet every minibatch is shared out evenly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARDS", "Index", "epoch_batches", "owner"]

SHARDS = 64
Index = NDArray[np.int64]


def owner(index: Index, size: int) -> Index:
    """The rank, out of `size`, that owns each particle of `index`."""
    return index % SHARDS % size


def epoch_batches(n: int, batch: int, seed: int, epoch: int) -> list[Index]:
    """The minibatches of an epoch, of about `batch` particles, ascending in each; all `n` particles once.

    Every shard is shuffled by itself, then the shards are dealt out in turn: any run of consecutive particles holds
    the same number of each shard, give or take one.
    """
    shard = np.arange(n) % SHARDS
    shuffled = np.lexsort((np.random.default_rng((seed, epoch)).random(n), shard))
    sizes = np.bincount(shard, minlength=SHARDS)
    turn = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = shuffled[np.lexsort((shard[shuffled], turn))]
    return [np.sort(part) for part in np.array_split(order, max(1, round(n / batch)))]
