"""What the data leave free, and how it is fixed: latents and flow may be changed together without moving anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["standardised"]


def standardised(
    latents: NDArray[np.floating], covariance: NDArray[np.floating], of: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Latents (N, K) and their posterior covariance (N, K, K), turned and scaled so that those `of` the particles (N,),
    their posterior spread included, follow the prior N(0, 1); and the matrix (K, K) that takes the new latents to the
    old, which the flow takes.

    Without it the rigidity prior shrinks the flow while the latents grow, and their own prior then works against the
    motion.
    """
    z = latents.astype(np.float64)
    second_moment = z[of].T @ z[of] / of.sum() + covariance[of].mean(axis=0)
    root = np.linalg.cholesky(second_moment + 1e-9 * np.eye(z.shape[1]))
    inverse = np.linalg.inv(root)
    turned = inverse @ covariance @ inverse.T
    return (z @ inverse.T).astype(np.float32), turned.astype(np.float32), root.astype(np.float32)
