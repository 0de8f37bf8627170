"""Norms and the quantisation of activations, apart or in one."""

from __future__ import annotations

from typing import Any, Literal

from torch import fx
from tvm import relax

from codegen.function_lowering import FunctionLowering, Value
from codegen.kernels.norm import NormSpec
from codegen.kernels.quantize import QuantizeSpec
from codegen.lowerings.arguments import Lowering, options, rows_of
from qcompiler.core import ops
from qcompiler.core.formats import QuantScheme, TensorFormat

Kind = Literal["rms", "layer"]


def quantize(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    """Lower the quantisation of activations."""
    x: Value = f.argument(node.args[0])
    spec = _quantize_spec(node, int(x.shape[-1]))
    rows = rows_of(f.row_count(x))
    scale = [f.shaped(f.argument(node.args[1]))] if spec.form.is_static else []
    outputs = f.kernel(
        ("quantize", spec, rows),
        lambda: f.kernel_set.quantize(spec, f.target, rows),
        f"quantize_{rows}",
        [f.rows(x), *scale],
        _quantized_rows(f, x, spec),
    )
    f.kernels[node.name] = (f"quantize_{rows}", str(spec.form))
    return _wrapped(x, outputs)


def _quantize_spec(node: fx.Node, k: int) -> QuantizeSpec:
    """Find the weight group that activations will meet, from the products that read them."""
    form: TensorFormat = options(node)["form"]
    groups = {
        QuantScheme.parse(str(reader.kwargs["scheme"])).weight.group_size(k)
        for part in node.users
        for reader in part.users
        if reader.target is ops.quantized_matmul
    }
    (group,) = groups
    return QuantizeSpec(k=k, form=form, weight_group=group)


def _quantized_rows(f: FunctionLowering, x: Value, spec: QuantizeSpec) -> list[Any]:
    m = f.row_count(x)
    return [
        ((m, spec.padded_k), "int8"),
        ((m, spec.scale_groups), "float32"),
        ((m, spec.sum_groups), "int32"),
    ]


def _wrapped(x: Value, outputs: list[relax.Var]) -> tuple[Value, ...]:
    return tuple(Value(var, (*x.shape[:-1], int(var.ty.shape[-1]))) for var in outputs)


def norm(kind: Kind) -> Lowering:
    """Lower a norm."""

    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        x: Value = f.argument(node.args[0])
        spec, inputs = _norm_inputs(f, node, kind)
        rows = rows_of(f.row_count(x))
        (out,) = f.kernel(
            ("norm", spec, rows),
            lambda: f.kernel_set.norm(spec, f.target, rows),
            f"{kind}_norm_{rows}",
            inputs,
            [((f.row_count(x), x.shape[-1]), "float32")],
        )
        f.kernels[node.name] = (f"{kind}_norm_{rows}", f"{spec.k} features")
        return Value(out, x.shape)

    return lowering


def norm_quantize(kind: Kind) -> Lowering:
    """Lower a norm that quantises what it gives."""

    def lowering(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
        x: Value = f.argument(node.args[0])
        spec, inputs = _norm_inputs(f, node, kind)
        form = _quantize_spec(node, spec.k)
        scale = [f.shaped(f.argument(options(node)["scale"]))] if form.form.is_static else []
        rows = rows_of(f.row_count(x))
        outputs = f.kernel(
            ("norm_quantize", spec, form, rows),
            lambda: f.kernel_set.norm_quantize(spec, form, f.target, rows),
            f"{kind}_norm_quantize_{rows}",
            [*inputs, *scale],
            _quantized_rows(f, x, form),
        )
        f.kernels[node.name] = (f"{kind}_norm_quantize_{rows}", f"{spec.k} features, {form.form}")
        return _wrapped(x, outputs)

    return lowering


def _norm_inputs(f: FunctionLowering, node: fx.Node, kind: Kind) -> tuple[NormSpec, list[Any]]:
    x: Value = f.argument(node.args[0])
    weight, bias = (*node.args[1:], None, None)[:2]
    spec = NormSpec(
        kind=kind,
        k=int(x.shape[-1]),
        eps=float(options(node)["eps"]),
        weight=weight is not None,
        bias=bias is not None,
        offset=float(options(node).get("offset", 0.0)),
    )
    extras = (argument for argument in (weight, bias) if argument is not None)
    return spec, [f.rows(x), *(f.shaped(f.argument(extra)) for extra in extras)]
