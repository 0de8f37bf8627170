"""GPTQ: the same codes as the literal optimal brain quantiser, less error, awkward Hessians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes import gptq as gptq_module
from passes.gptq import GptqSettings, column_order, gptq, relative_error
from passes.rounding import round_to_nearest
from passes.scale_search import round_searched
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.formats import PerChannel, QuantScheme, TensorFormat
from qcompiler.core.qtensor import QuantizedTensor

PLAIN: dict[str, Any] = {"sweeps": 0, "search": "none", "precision": "float64"}


def parse(text: str) -> TensorFormat:
    return QuantScheme.parse(text).weight


def problem(seed: int, n: int, k: int, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of inputs that go together and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=generator) * torch.linspace(1, 0.1, k)
    inputs = torch.randn(tokens, k, generator=generator) @ mix
    inputs *= torch.exp(torch.randn(k, generator=generator) * 0.5)
    weight = torch.randn(n, k, generator=generator) * 0.05
    return weight, (inputs.T @ inputs).double() / tokens


def optimal_brain_quantiser(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    form: TensorFormat,
    order: list[int],
    damping: float,
    *,
    running: bool = False,
    importance: torch.Tensor | None = None,
) -> QuantizedTensor:
    """One column at a time, the inverse of the remaining Hessian brought up to date each time."""
    k = weight.shape[1]
    size = form.group_size(k)
    alone = TensorFormat(bits=form.bits, granularity=PerChannel(), symmetric=form.symmetric)
    w = weight.double().clone()
    start = round_to_nearest(weight, form)
    if importance is not None:
        start = round_searched(weight, form, importance=importance)
    codes, scale = start.codes.clone(), start.scale.clone()
    zero = None if start.zero_point is None else start.zero_point.clone()
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(k))
    left, begun = list(order), set()
    first, last = form.code_range
    while left:
        j = left[0]
        g = j // size
        if running and g not in begun:
            begun.add(g)
            members = [c for c in left if c // size == g]
            now = w[:, members].float()
            if importance is None:
                found = round_to_nearest(now, alone)
            else:
                found = round_searched(now, alone, importance=importance[members])
            scale[:, g] = found.scale[:, 0]
            if zero is not None and found.zero_point is not None:
                zero[:, g] = found.zero_point[:, 0]
        step = scale[:, g].double()
        offset = 0 if zero is None else zero[:, g].double()
        code = (torch.round(w[:, j] / step) + offset).clamp(first, last)
        codes[:, j] = code.to(codes.dtype)
        error = w[:, j] - (code - offset) * step
        w -= torch.outer(error / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        left.pop(0)
    return QuantizedTensor(codes, scale, zero, form)


@pytest.mark.parametrize("scheme", ["w4g16", "w4g16z", "w3g24", "w2g8z", "w8g32", "w4", "w5z"])
@pytest.mark.parametrize(
    ("order", "scales"),
    [
        ("natural", "static"),
        ("natural", "running"),
        ("group", "static"),
        ("group", "running"),
        ("activation", "static"),
    ],
)
@pytest.mark.parametrize("search", ["none", "hessian"])
def test_codes_are_those_of_the_optimal_brain_quantiser(
    scheme: str, order: Any, scales: Any, search: Any
) -> None:
    form = parse(scheme)
    weight, hessian = problem(5, n=13, k=56)
    chosen = GptqSettings(**PLAIN | {"search": search}, block=16, order=order, scales=scales)
    found = gptq(weight, hessian, form, chosen)
    expected = optimal_brain_quantiser(
        weight,
        hessian,
        form,
        column_order(hessian.diagonal(), form, order).tolist(),
        chosen.damping,
        running=scales == "running",
        importance=hessian.diagonal() if search == "hessian" else None,
    )
    assert torch.equal(found.weight.codes, expected.codes)
    assert torch.equal(found.weight.scale, expected.scale)
    if expected.zero_point is not None:
        assert found.weight.zero_point is not None
        assert torch.equal(found.weight.zero_point, expected.zero_point)


@pytest.mark.parametrize("block", [1, 7, 16, 24, 128])
@pytest.mark.parametrize("scales", ["static", "running"])
def test_blocks_change_nothing(block: int, scales: Any) -> None:
    weight, hessian = problem(2, n=8, k=72)
    whole, parts = (
        gptq(weight, hessian, parse("w4g16"), GptqSettings(**PLAIN, scales=scales, block=size))
        for size in (72, block)
    )
    assert torch.equal(whole.weight.codes, parts.weight.codes)
    assert torch.equal(whole.weight.scale, parts.weight.scale)


def test_rows_are_worked_on_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(8, n=13, k=40)
    chosen = GptqSettings(precision="float64")
    whole = gptq(weight, hessian, parse("w4g16z"), chosen)
    monkeypatch.setattr(gptq_module, "ROWS", 5)
    chunked = gptq(weight, hessian, parse("w4g16z"), chosen)
    assert torch.equal(whole.weight.codes, chunked.weight.codes)
    assert torch.equal(whole.weight.scale, chunked.weight.scale)
    assert whole.error_after == pytest.approx(chunked.error_after)


def test_float32_finds_nearly_the_codes_of_float64() -> None:
    weight, hessian = problem(3, n=32, k=128)
    single, double = (
        gptq(weight, hessian, parse("w4g32"), GptqSettings(sweeps=0, precision=precision))
        for precision in ("float32", "float64")
    )
    assert (single.weight.codes == double.weight.codes).float().mean() > 0.98
    assert single.error_after == pytest.approx(double.error_after, rel=0.02)


@settings(max_examples=25)
@given(
    st.integers(0, 1 << 30),
    st.sampled_from(["w4g16", "w4g16z", "w3", "w2g32", "w6g24z"]),
    st.sampled_from(["natural", "group", "activation"]),
)
def test_the_output_errs_less_than_of_rounding(seed: int, scheme: str, order: Any) -> None:
    weight, hessian = problem(seed, n=24, k=64)
    scales: Any = "static" if order == "activation" else "running"
    usual = gptq(weight, hessian, parse(scheme), GptqSettings(order=order, scales=scales))
    assert usual.error_after < usual.error_before
    # What descends is the damped error; without damping it is the one that is given back.
    plain, swept = (
        gptq(
            weight,
            hessian,
            parse(scheme),
            GptqSettings(sweeps=n, order=order, scales=scales, damping=0, precision="float64"),
        )
        for n in (0, 2)
    )
    assert swept.error_after <= plain.error_after
    nearest = round_to_nearest(weight, parse(scheme)).dequantize()
    assert usual.error_before == pytest.approx(relative_error(weight, nearest, hessian), rel=1e-3)


@pytest.mark.parametrize("order", ["natural", "group"])
def test_a_short_last_group_has_a_scale_of_its_own(order: Any) -> None:
    weight, hessian = problem(7, n=10, k=72)
    weight[:, 64:] *= 100
    found = gptq(weight, hessian, parse("w4g32"), GptqSettings(order=order))
    assert found.weight.scale.shape == (10, 3)
    assert (found.weight.scale[:, 2].abs() > 10 * found.weight.scale[:, 1].abs()).all()
    assert found.error_after < found.error_before


def test_columns_without_input_are_rounded_to_nearest_and_counted() -> None:
    weight, hessian = problem(1, n=6, k=32)
    dead = [3, 8, 31]
    hessian[dead] = 0
    hessian[:, dead] = 0
    found = gptq(
        weight, hessian, parse("w4g16"), GptqSettings(sweeps=1, search="none", scales="static")
    )
    assert found.dead == 3
    step = found.weight.scale.float().abs().repeat_interleave(16, 1)
    error = (found.weight.dequantize() - weight).abs()
    # The largest entry of a group may have been clamped: by one step, since the range is full.
    assert (error[:, dead] <= 1.01 * step[:, dead]).all()
    assert found.error_after < found.error_before


def test_no_input_at_all_is_rounding() -> None:
    weight = torch.randn(4, 16)
    found = gptq(weight, torch.zeros(16, 16), parse("w4"), GptqSettings(**PLAIN))
    assert found.dead == 16
    assert torch.equal(found.weight.codes, round_to_nearest(weight, parse("w4")).codes)
    assert found.error_after == 0


def test_damping_is_raised_until_the_matrix_is_positive_definite() -> None:
    weight, hessian = problem(4, n=4, k=24)
    singular = GptqSettings(damping=0.0)
    one = torch.ones(24, 1).double() @ torch.ones(1, 24).double()
    found = gptq(weight, one, parse("w4g8"), singular)
    assert found.damping is not None
    assert 0 < found.damping <= 0.01
    assert found.error_after < found.error_before
    shifted = hessian - 0.03 * hessian.diagonal().mean() * torch.eye(24)
    assert torch.linalg.eigvalsh(shifted).min() < 0
    found = gptq(weight, shifted, parse("w4g8"), GptqSettings(damping=0.01))
    assert found.damping == pytest.approx(0.1)


@pytest.mark.parametrize("search", ["none", "weight", "hessian"])
def test_a_hopeless_matrix_means_rounding_to_nearest(search: Any) -> None:
    weight, _ = problem(4, n=4, k=24)
    hopeless = torch.eye(24).double() - 3 * (1 - torch.eye(24).double())
    found = gptq(weight, hopeless, parse("w4g8"), GptqSettings(search=search))
    assert found.damping is None
    expected = {
        "none": round_to_nearest(weight, parse("w4g8")),
        "weight": round_searched(weight, parse("w4g8")),
        "hessian": round_searched(weight, parse("w4g8"), importance=torch.ones(24)),
    }[search]
    assert torch.equal(found.weight.codes, expected.codes)


def test_another_target_is_what_the_codes_stand_for() -> None:
    weight, hessian = problem(9, n=8, k=32)
    target = weight * 1.3
    found = gptq(weight, hessian, parse("w6g16"), GptqSettings(), target=target)
    assert relative_error(target, found.weight.dequantize(), hessian) < 0.01
    assert relative_error(weight, found.weight.dequantize(), hessian) > 0.03


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    weight, hessian = problem(0, n=4, k=16)
    bad = weight.clone()
    bad[1, 2] = value
    with pytest.raises(QCompilerError, match="entries that are infinite or not a number"):
        gptq(bad, hessian, parse("w4"), GptqSettings())
    hessian[3, 3] = value
    with pytest.raises(QCompilerError, match="its inputs on the calibration samples are infinite"):
        gptq(weight, hessian, parse("w4"), GptqSettings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "blocks of 0 columns are none; use 1 or more"),
        ({"damping": 2.0}, "damping 2.0 is not between 0 and 1; 0.05 is usual"),
        ({"damping": float("nan")}, "damping nan is not between 0 and 1"),
        ({"order": "activation"}, "scales must be 'static'; the order 'group' goes with 'running'"),
        ({"sweeps": -1}, "-1 sweeps are too few; use 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GptqSettings(**options)


def test_group_order_sorts_groups_by_their_mean_and_columns_within() -> None:
    diagonal = torch.tensor([1.0, 3, 2, 0, 0, 0, 0, 0] + [2.0] * 8 + [9.0, 1])
    order = column_order(diagonal, parse("w4g8"), "group").tolist()
    assert order == [16, 17, *range(8, 16), 1, 2, 0, 3, 4, 5, 6, 7]


def test_the_same_input_gives_the_same_bits() -> None:
    weight, hessian = problem(6, n=40, k=96)
    one, two = (gptq(weight, hessian, parse("w4g32"), GptqSettings()).weight for _ in range(2))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.scale, two.scale)
