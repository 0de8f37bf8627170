"""Improve codes that are there: coordinate descent over codes, least squares over scales.

Both lower tr((W − Ŵ) H (W − Ŵ)ᵀ), the error of a layer's output on inputs with second moments H,
and neither ever raises it. Descent looks at one column after the other and takes the code that is
best with all the others as they are, where GPTQ decides once, not knowing what comes after (as in
Behdin et al., QuantEase, arXiv 2309.01885). Shape letters: `n` output features, `k` input features,
`g` groups of them.
"""

from __future__ import annotations

import torch

from qcompiler.core.groups import LARGEST, SMALLEST, to_float16
from qcompiler.core.qtensor import QuantizedTensor


def descend(
    weight: torch.Tensor, codes: QuantizedTensor, hessian: torch.Tensor, block: int = 128
) -> QuantizedTensor:
    """Sweep once over the columns of a weight [n, k], giving each the best codes with its scales.

    The gradient of columns after a block of them is brought up to date once it is done. The columns
    come in their natural order; those without a positive diagonal in `hessian` [k, k] stay.
    """
    k = weight.shape[1]
    size = codes.format.group_size(k)
    first, last = codes.format.code_range
    dtype = weight.dtype
    value = codes.dequantize().to(dtype)
    # Columns lie in rows here: each is worked on as a whole.
    gradient = (hessian.to(dtype) @ (weight - value).T).contiguous()
    values = value.T.contiguous()
    found = codes.codes.T.contiguous()
    scales = codes.scale.T.to(dtype).contiguous()
    zeros = None if codes.zero_point is None else codes.zero_point.T.to(dtype).contiguous()
    diagonal = hessian.diagonal().to(torch.float64).tolist()
    for begin in range(0, k, block):
        end = min(begin + block, k)
        moved = torch.zeros(end - begin, weight.shape[0], dtype=dtype)
        for j in range(begin, end):
            if diagonal[j] <= 0:
                continue
            group = j // size
            code = torch.round((values[j] + gradient[j] / diagonal[j]) / scales[group])
            if zeros is not None:
                code += zeros[group]
            code.clamp_(first, last)
            found[j] = code.to(found.dtype)
            value = (code if zeros is None else code - zeros[group]) * scales[group]
            change = value - values[j]
            values[j] = value
            gradient[j:end].addr_(hessian[j, j:end].to(dtype), change, alpha=-1)
            moved[j - begin] = change
        gradient[end:].addmm_(hessian[begin:end, end:].T.to(dtype), moved, alpha=-1)
    return QuantizedTensor(found.T.contiguous(), codes.scale, codes.zero_point, codes.format)


def refit_scales(
    weight: torch.Tensor, codes: QuantizedTensor, hessian: torch.Tensor
) -> QuantizedTensor:
    """Give each row of a weight [n, k] the scales that are best for its codes, all at once.

    The scales of a row solve one system of `g` equations, since errors of groups whose inputs go
    together may cancel. A row keeps its scales where the new ones, rounded to float16, are no
    better.
    """
    n, k = weight.shape
    size, groups = codes.format.group_size(k), codes.format.groups(k)
    levels = codes.codes.to(torch.float32)
    if codes.zero_point is not None:
        levels -= codes.zero_point.to(torch.float32).repeat_interleave(size, 1)[:, :k]
    levels = levels.to(weight.dtype)
    hessian = hessian.to(weight.dtype)
    left = torch.zeros(n, groups, groups, dtype=weight.dtype)
    for g in range(groups):
        part = slice(g * size, min((g + 1) * size, k))
        left[:, g] = _sum_groups((levels[:, part] @ hessian[part]) * levels, size)
    right = _sum_groups((weight @ hessian) * levels, size)
    # Groups of zeros and groups that cannot be told apart: stay near the scales there are.
    now = codes.scale.to(weight.dtype)
    diagonal = left.diagonal(dim1=1, dim2=2)
    ridge = 1e-6 * diagonal.mean(1, keepdim=True) + 1e-30
    left = left + torch.diag_embed(ridge.expand(n, groups))
    fitted, _ = torch.linalg.solve_ex(left, right + ridge * now)
    usable = torch.isfinite(fitted) & (fitted * now > 0) & (fitted.abs() >= SMALLEST)
    fitted = torch.where(usable, fitted, now).clamp(-LARGEST, LARGEST)
    scale = to_float16(fitted.to(torch.float32))
    new = QuantizedTensor(codes.codes, scale, codes.zero_point, codes.format)
    better = row_errors(weight, new, hessian) < row_errors(weight, codes, hessian)
    scale = torch.where(better.unsqueeze(1), scale, codes.scale)
    return QuantizedTensor(codes.codes, scale, codes.zero_point, codes.format)


def row_errors(weight: torch.Tensor, codes: QuantizedTensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return (w − ŵ) H (w − ŵ)ᵀ for each row, [n]."""
    error = weight - codes.dequantize().to(weight.dtype)
    return ((error @ hessian.to(weight.dtype)) * error).sum(1)


def _sum_groups(values: torch.Tensor, size: int) -> torch.Tensor:
    """Sum [n, k] over groups of columns: [n, g]."""
    n, k = values.shape
    short = -k % size
    if short:
        values = torch.nn.functional.pad(values, (0, short))
    return values.reshape(n, -1, size).sum(2)
