"""Correct a weight for what quantising before it has done to its inputs.

The layer was made for the float model's inputs x and gets x̂. The weight W' with the least squared
error of W' x̂ against W x is W + W D Ĥ⁻¹, with Ĥ = Σ x̂ x̂ᵀ and D = Σ (x − x̂) x̂ᵀ (GPTAQ, Li et al.,
arXiv 2504.02692; Qronos, arXiv 2505.11695). D is noisier than Ĥ, so that a share of the correction
does better on other text than all of it.
"""

from __future__ import annotations

import torch

MOST_DAMPING = 1.0


def corrected_weight(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    drift: torch.Tensor,
    *,
    share: float,
    damping: float,
) -> torch.Tensor:
    """Return W + share · W D (Ĥ + damping)⁻¹ for a weight [n, k], Ĥ and D [k, k].

    `damping` is a fraction of Ĥ's mean diagonal, raised tenfold each time the sum is not positive
    definite. Inputs that were always zero are left out. Where nothing helps, W is returned.

    >>> w, h = torch.ones(1, 2), torch.eye(2)
    >>> corrected_weight(w, h, 0.1 * h, share=1.0, damping=0.0)
    tensor([[1.1000, 1.1000]])
    """
    hessian, drift = hessian.clone(), drift.clone()
    dead = hessian.diagonal() <= 0
    mean = hessian.diagonal().clamp(min=0).mean()
    if not float(mean) > 0:
        return weight
    hessian.masked_fill_(dead | dead.unsqueeze(1), 0.0).diagonal()[dead] = mean
    drift[:, dead] = 0
    eye = torch.eye(len(hessian), dtype=hessian.dtype)
    while damping <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * mean * eye)
        if not failed:
            moved = weight.to(drift.dtype) @ drift
            correction = torch.cholesky_solve(moved.T, lower).T
            if torch.isfinite(correction).all():
                return weight + (share * correction).to(weight.dtype)
        damping = max(damping * 10, 1e-4)
    return weight
