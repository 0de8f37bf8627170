"""GPTQ: round a weight column by column, correcting the columns to come for the errors made.

Frantar et al., arXiv 2210.17323. What is made small is the error of the layer's output on its
calibration inputs, tr((W − Ŵ) H (W − Ŵ)ᵀ) with H = Σ x xᵀ; the later columns take up what an
earlier one lost, to the degree that their inputs go together. Pure functions from matrices to
codes. Shape letters: `n` output features, `k` input features (columns), `g` groups of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from passes.code_descent import descend, refit_scales
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.formats import PerChannel, TensorFormat
from qcompiler.core.qtensor import QuantizedTensor

Order = Literal["natural", "activation", "group"]
ScaleTime = Literal["static", "running"]
ScaleSearch = Literal["none", "weight", "hessian"]

MOST_DAMPING = 1.0

ROWS = 8192
"""Rows worked on at a time; each is quantised by itself, and a head may have 100,000 of them."""


@dataclass(frozen=True, kw_only=True)
class GptqSettings:
    """How codes are found.

    Columns are worked on in blocks of `block`; what comes after one is corrected once it is done.
    `order` is theirs: "natural"; "activation", those with the largest inputs first; "group", the
    group with the largest inputs first and within it the column with the largest. Codes are stored
    in the natural order in any case, so that a kernel needs no gather.

    `scales` are found from the weight as it was ("static") or as it has become when its group
    begins ("running"); `search` says by which error (`passes.scale_search`), "hessian" weighing
    columns by H's diagonal. `damping`, a fraction of H's mean diagonal, is added to the diagonal;
    ten times as much each time H is not positive definite, up to that mean. `sweeps` of coordinate
    descent over the codes follow, each with a refit of the scales.
    """

    block: int = 128
    order: Order = "group"
    scales: ScaleTime = "running"
    search: ScaleSearch = "hessian"
    damping: float = 0.05
    sweeps: int = 2
    precision: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ConfigError(f"blocks of {self.block} columns are none; use 1 or more")
        if not 0 <= self.damping <= MOST_DAMPING:
            raise ConfigError(
                f"damping {self.damping} is not between 0 and {MOST_DAMPING:g}; 0.05 is usual"
            )
        if self.order == "activation" and self.scales == "running":
            raise ConfigError(
                "in the order 'activation' columns of many groups alternate, and scales must be "
                "'static'; the order 'group' goes with 'running'"
            )
        if self.sweeps < 0:
            raise ConfigError(f"{self.sweeps} sweeps are too few; use 0 or more")


@dataclass(frozen=True, slots=True)
class GptqResult:
    """Codes, and how they came about.

    `damping` is the fraction that was added at last; None: no matrix was positive definite, and
    every entry was rounded to nearest. `dead` counts columns whose input was always zero. Errors
    are relative, tr(ΔW H ΔWᵀ) / tr(W H Wᵀ): `error_before` of rounding to nearest.
    """

    weight: QuantizedTensor
    damping: float | None
    dead: int
    error_before: float
    error_after: float


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    form: TensorFormat,
    settings: GptqSettings,
    *,
    target: torch.Tensor | None = None,
) -> GptqResult:
    """Quantise a weight [n, k] for inputs with second moments `hessian` [k, k].

    `target` [n, k] is what the codes should stand for where that is not the weight itself.

    Raises:
        QCompilerError: the weight or the Hessian has entries that are not finite, or a scale passes
            float16.
    """
    dtype = torch.float64 if settings.precision == "float64" else torch.float32
    nearest = round_to_nearest(weight, form)
    if not torch.isfinite(hessian).all():
        raise QCompilerError("its inputs on the calibration samples are infinite or not a number")
    moments = hessian.to(dtype)
    hessian, dead = _without_dead(moments)
    wanted = (weight if target is None else target).to(dtype)
    factor, damping = _factor_of_inverse(hessian, settings, form)
    if factor is None:
        codes = _searched(wanted.to(torch.float32), hessian.diagonal(), form, settings.search)
    else:
        # The same sum that the factor stands for: without it, codes fit the samples too closely.
        damped = hessian.clone()
        damped.diagonal().add_((damping or 0.0) * hessian.diagonal().mean())
        done = []
        for rows in torch.split(wanted, ROWS):
            part = _quantize_columns(rows, hessian, factor, form, settings)
            for _ in range(settings.sweeps):
                part = descend(rows, refit_scales(rows, part, damped), damped, settings.block)
            done.append(part)
        codes = QuantizedTensor.concatenate(done)
    return GptqResult(
        codes,
        damping,
        int(dead.sum()),
        relative_error(wanted, nearest.dequantize(), moments),
        relative_error(wanted, codes.dequantize(), moments),
    )


def relative_error(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return tr((W − V) H (W − V)ᵀ) / tr(W H Wᵀ): the relative error of the layer's output.

    >>> one = torch.ones(1, 2)
    >>> relative_error(one, one * 0.9, torch.eye(2))
    0.010...
    """
    hessian = hessian.to(weight.dtype)
    error = weight - other.to(weight.dtype)
    power = float(((weight @ hessian) * weight).sum())
    lost = float(((error @ hessian) * error).sum())
    return max(lost, 0.0) / power if power > 0 else 0.0


def column_order(diagonal: torch.Tensor, form: TensorFormat, order: Order) -> torch.Tensor:
    """Return the columns [k] in the order in which they are rounded.

    >>> from qcompiler.core.formats import PerGroup
    >>> form = TensorFormat(bits=4, granularity=PerGroup(8))
    >>> column_order(torch.arange(10.0), form, "group").tolist()
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    """
    k = len(diagonal)
    if order == "natural":
        return torch.arange(k)
    if order == "activation":
        return torch.argsort(diagonal, descending=True, stable=True)
    size = form.group_size(k)
    groups = torch.split(torch.arange(k), size)
    means = torch.stack([diagonal[group].mean() for group in groups])
    return torch.cat(
        [
            groups[g][torch.argsort(diagonal[groups[g]], descending=True, stable=True)]
            for g in torch.argsort(means, descending=True, stable=True).tolist()
        ]
    )


def _without_dead(hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give columns whose input was always zero a diagonal of their own.

    Nothing is known of them, so that they are rounded to nearest and correct no others.
    """
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    if not dead.any():
        return hessian.clone(), dead
    alive = diagonal[~dead]
    hessian = hessian.masked_fill(dead | dead.unsqueeze(1), 0.0)
    hessian.diagonal()[dead] = alive.mean() if len(alive) else 1.0
    return hessian, dead


def _factor_of_inverse(
    hessian: torch.Tensor, settings: GptqSettings, form: TensorFormat
) -> tuple[torch.Tensor | None, float | None]:
    """Return upper U with Uᵀ U = (H + damping)⁻¹, columns in order, and the damping it took.

    With R reversing the columns and R H R = L Lᵀ, U = R L⁻¹ R: one factorisation instead of two
    and no inverse of H, which loses less in float32.
    """
    order = column_order(hessian.diagonal(), form, settings.order)
    turned = hessian[order][:, order].flip(0, 1)
    eye = torch.eye(len(turned), dtype=turned.dtype)
    mean = turned.diagonal().mean()
    damping = settings.damping
    while damping <= MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(turned + damping * mean * eye)
        if not failed:
            factor = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
            if torch.isfinite(factor).all():
                return factor.contiguous(), damping
        damping = max(damping * 10, 1e-4)
    return None, None


def _quantize_columns(
    wanted: torch.Tensor,
    hessian: torch.Tensor,
    factor: torch.Tensor,
    form: TensorFormat,
    settings: GptqSettings,
) -> QuantizedTensor:
    n, k = wanted.shape
    order = column_order(hessian.diagonal(), form, settings.order)
    size = form.group_size(k)
    group_of = (order // size).tolist()
    # Columns lie in rows here: each is worked on as a whole.
    columns = wanted.T[order].contiguous()
    scales = _StoredScales(wanted, hessian.diagonal(), form, settings)
    codes = torch.empty(k, n, dtype=torch.int8 if form.symmetric else torch.uint8)
    for begin, end in pairwise(_block_ends(group_of, settings)):
        errors = torch.empty(end - begin, n, dtype=wanted.dtype)
        for place in range(begin, end):
            group = group_of[place]
            if settings.scales == "running" and (place == 0 or group_of[place - 1] != group):
                members = [p for p in range(place, k) if group_of[p] == group]
                scales.renew(group, columns[place : place + len(members)], order[members])
            code, value = scales.round(columns[place], group)
            codes[place] = code
            error = (columns[place] - value) / factor[place, place]
            columns[place + 1 : end].addr_(factor[place, place + 1 : end], error, alpha=-1)
            errors[place - begin] = error
        columns[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    natural = torch.empty_like(codes)
    natural[order] = codes
    return QuantizedTensor(natural.T.contiguous(), *scales.stored(), form)


def _block_ends(group_of: list[int], settings: GptqSettings) -> list[int]:
    """Return where blocks begin and end: with running scales no block has a part of two groups.

    A group's scale is found from columns that are corrected for all before them, which columns of a
    later block are not until the block is done.
    """
    k = len(group_of)
    if settings.scales == "static":
        return [*range(0, k, settings.block), k]
    begins = [p for p in range(k) if p == 0 or group_of[p] != group_of[p - 1]]
    ends = [0]
    for begin, after in pairwise([*begins, k]):
        if after - ends[-1] > settings.block and begin > ends[-1]:
            ends.append(begin)
        while after - ends[-1] > settings.block:
            ends.append(ends[-1] + settings.block)
    return [*ends, k]


class _StoredScales:
    """The scales of a weight, [g, n], as they are stored, and rounding to their codes."""

    def __init__(
        self,
        wanted: torch.Tensor,
        importance: torch.Tensor,
        form: TensorFormat,
        settings: GptqSettings,
    ) -> None:
        self._form, self._search = form, settings.search
        self._importance = importance
        if settings.scales == "static":
            start = _searched(wanted.to(torch.float32), importance, form, settings.search)
            self._scale = start.scale.T.contiguous()
            self._zero = None if start.zero_point is None else start.zero_point.T.contiguous()
        else:
            n, g = wanted.shape[0], form.groups(wanted.shape[1])
            self._scale = torch.ones(g, n, dtype=torch.float16)
            self._zero = None if form.symmetric else torch.zeros(g, n, dtype=torch.uint8)

    def renew(self, group: int, columns: torch.Tensor, members: torch.Tensor) -> None:
        """Find the scales of a group from its columns [size, n] as they are now."""
        alone = TensorFormat(
            bits=self._form.bits, granularity=PerChannel(), symmetric=self._form.symmetric
        )
        found = _searched(
            columns.T.to(torch.float32), self._importance[members], alone, self._search
        )
        self._scale[group] = found.scale[:, 0]
        if self._zero is not None and found.zero_point is not None:
            self._zero[group] = found.zero_point[:, 0]

    def round(self, column: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nearest codes to a column [n], and what they stand for."""
        scale = self._scale[group].to(column.dtype)
        code = torch.round(column / scale)
        first, last = self._form.code_range
        if self._zero is None:
            code.clamp_(first, last)
            return code.to(torch.int8), code * scale
        zero = self._zero[group].to(column.dtype)
        code = (code + zero).clamp_(first, last)
        return code.to(torch.uint8), (code - zero) * scale

    def stored(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scales and zero points, [n, g]."""
        zero = None if self._zero is None else self._zero.T.contiguous()
        return self._scale.T.contiguous(), zero


def _searched(
    weight: torch.Tensor, importance: torch.Tensor, form: TensorFormat, search: ScaleSearch
) -> QuantizedTensor:
    if search == "none":
        return round_to_nearest(weight, form)
    return round_searched(weight, form, importance=importance if search == "hessian" else None)
