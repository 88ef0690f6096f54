"""The rigidity energy and its gradient on the CPU, compiled: one pass over the cells of each displacement field."""

from __future__ import annotations

import numba
import numpy as np
import torch

from flex_job.operator.cpu_kernels import FAST

__all__ = ["CompiledRigidity"]

BLOCK = 256  # cells at a time: they stay in the first-level cache, and LLVM sees that their rows do not overlap
NEWTON_STEPS = 5


class CompiledRigidity(torch.autograd.Function):
    """`apply(u, cells, gradients, weights, yield_square)`: mean over the batch of sum_j w_j y log(1 + s_j / y) with
    s_j = |A_j - R_j|^2 and y = `yield_square`, see `Rigidity.energy`.

    The gradient is found with the value, for R counts as a constant: dE/dA_j = 2 w_j (A_j - R_j) / (1 + s_j / y).
    """

    @staticmethod
    def forward(ctx, u, cells, gradients, weights, yield_square):  # type: ignore[no-untyped-def,override]
        arrays = (each.detach().numpy() for each in (u, cells, gradients.to(u), weights.to(u)))
        energy, gradient = _energy(*arrays, yield_square)
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(energy.mean(), dtype=u.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def,override]
        (gradient,) = ctx.saved_tensors
        return gradient * (grad / len(gradient)), None, None, None, None


@numba.njit(parallel=True, fastmath=FAST, cache=True, nogil=True, error_model="numpy")
def _energy(u, cells, gradients, weights, yield_square):
    """Energies (b,) float64 and their gradients (b, V, 3) at displacements u (b, V, 3)."""
    energy = np.zeros(len(u))
    gradient = np.zeros_like(u)
    for b in numba.prange(len(u)):
        for start in range(0, len(cells), BLOCK):
            count = min(BLOCK, len(cells) - start)
            a = np.zeros((9, BLOCK), u.dtype)
            a[0], a[4], a[8] = 1, 1, 1
            for i in range(count):
                for k in range(4):
                    vertex = cells[start + i, k]
                    for axis in range(3):
                        for c in range(3):
                            a[3 * axis + c, i] += u[b, vertex, axis] * gradients[start + i, k, c]
            r = a.copy()
            for _ in range(NEWTON_STEPS):
                _newton(r)
            total = 0.0
            for i in range(count):
                strain = 0.0
                for k in range(9):
                    left = a[k, i] - r[k, i]
                    strain += left * left
                    r[k, i] = left
                total += weights[start + i] * yield_square * np.log1p(strain / yield_square)
                factor = u.dtype.type(2 * weights[start + i] / (1 + strain / yield_square))
                for k in range(9):
                    r[k, i] *= factor
            energy[b] += total
            for i in range(count):
                for k in range(4):
                    vertex = cells[start + i, k]
                    for axis in range(3):
                        for c in range(3):
                            gradient[b, vertex, axis] += r[3 * axis + c, i] * gradients[start + i, k, c]
    return energy, gradient


@numba.njit(inline="always", fastmath=FAST, error_model="numpy")
def _newton(m):
    """One step of `orthogonal_factor` for BLOCK matrices, entries row by row in m (9, BLOCK); vectorised."""
    half, least = m.dtype.type(0.5), m.dtype.type(1e-18)
    for i in range(BLOCK):
        a, b, c = m[0, i], m[1, i], m[2, i]
        d, e, f = m[3, i], m[4, i], m[5, i]
        g, h, k = m[6, i], m[7, i], m[8, i]
        ca, cb, cc = e * k - f * h, f * g - d * k, d * h - e * g
        cd, ce, cf = h * c - k * b, k * a - g * c, g * b - h * a
        cg, ch, ck = b * f - c * e, c * d - a * f, a * e - b * d
        det = a * ca + b * cb + c * cc
        det = det if abs(det) > least else least
        size = a * a + b * b + c * c + d * d + e * e + f * f + g * g + h * h + k * k
        inverse = ca * ca + cb * cb + cc * cc + cd * cd + ce * ce + cf * cf + cg * cg + ch * ch + ck * ck
        norm = np.sqrt(np.sqrt(inverse / size) / abs(det))
        s, t = half * norm, half / (norm * det)
        m[0, i], m[1, i], m[2, i] = s * a + t * ca, s * b + t * cb, s * c + t * cc
        m[3, i], m[4, i], m[5, i] = s * d + t * cd, s * e + t * ce, s * f + t * cf
        m[6, i], m[7, i], m[8, i] = s * g + t * cg, s * h + t * ch, s * k + t * ck
