"""Lowerings of the operators of ours: which kernel serves each, and how it is called."""

from __future__ import annotations

from typing import Any, Literal

from torch import fx
from tvm import relax

from codegen.function_lowering import FunctionLowering, Size, Value
from codegen.kernels import float_matmul, quantized_matmul
from codegen.kernels.attention import AttentionSpec, attention
from codegen.kernels.dense_attention import DenseAttentionSpec, dense_attention
from codegen.kernels.embedding import EmbeddingSpec, embedding
from codegen.kernels.epilogue import Epilogue
from codegen.kernels.norm import NormSpec, norm, norm_quantize
from codegen.kernels.quantize import QuantizeSpec, quantize
from codegen.kernels.rope_attention import RopeAttentionSpec, rope_attention
from codegen.kernels.rotary import RotarySpec, rotary
from codegen.kernels.row import Rows
from qcompiler.core import ops
from qcompiler.core.formats import PerToken, QuantScheme, TensorFormat
from qcompiler.core.program import operator_name

Kind = Literal["rms", "layer"]


def _options(node: fx.Node) -> dict[str, Any]:
    """Return a node's keyword arguments; FX types them too loosely to be of use."""
    return dict(node.kwargs)


def _rows(m: Size) -> Rows:
    """Tell whether a kernel is for one row, which is known, or for many."""
    return "one" if _is_one(m) else "many"


def _linear(f: FunctionLowering, node: fx.Node) -> Value:
    x, weight, bias, residual = _optional(node, 4)
    matrix = f.rows(f.argument(x))
    return _product(f, node, str(weight.target), [matrix], bias, residual, None)


def _quantized_matmul(f: FunctionLowering, node: fx.Node) -> Value:
    codes, scales, weight, bias, residual = _optional(node, 5)
    # What quantised the activations also summed their codes, which only kernels care for.
    sums = f.values[codes.args[0]][2]
    inputs = [f.rows(v) for v in (f.argument(codes), f.argument(scales), sums)]
    return _product(f, node, str(weight.target), inputs, bias, residual, str(node.kwargs["scheme"]))


def _product(
    f: FunctionLowering,
    node: fx.Node,
    name: str,
    inputs: list[relax.Var],
    bias: Any,
    residual: Any,
    scheme: str | None,
) -> Value:
    packing = f.weights.packings[name]
    epilogue = Epilogue(
        bias=bias is not None,
        residual=residual is not None,
        activation=str(node.kwargs.get("activation", "none")),
    )
    m = f.row_count(f.argument(node.args[0]))
    rows = _rows(m)
    if scheme is None:
        family: Any = float_matmul
        spec: Any = float_matmul.FloatMatmul(packing=packing, epilogue=epilogue)
        label, reason = "float_matmul", "float32 weight"
    else:
        form = QuantScheme.parse(scheme).activation
        per_token = form is not None and isinstance(form.granularity, PerToken)
        family = quantized_matmul
        spec = quantized_matmul.QuantizedMatmul(
            packing=packing, per_token=per_token, epilogue=epilogue
        )
        label, reason = f"quantized_matmul_w{packing.bits}", f"{scheme}, {f.target.dot}"
    build = family.one_row if rows == "one" else family.many_rows
    inputs = inputs + f.packed_weight(name)
    for extra in (bias, residual):
        if extra is not None:
            value = f.argument(extra)
            inputs.append(f.rows(value) if extra is residual else f.shaped(value))
    (out,) = f.kernel(
        (label, spec, rows),
        lambda: build(spec, f.target),
        f"{label}_{rows}",
        inputs,
        [((m, packing.outputs), "float32")],
    )
    f.kernels[operator_name(name)] = (
        f"{label}_{rows}_row{'' if rows == 'one' else 's'}",
        f"{reason}, {packing.vectors} vectors a tile",
    )
    shape = f.argument(node.args[0]).shape
    return Value(out, (*shape[:-1], packing.outputs))


def _optional(node: fx.Node, count: int) -> list[Any]:
    """Return `count` arguments of a node; those left out are None."""
    names = ("bias", "residual")
    given = list(node.args) + [None] * (count - len(node.args))
    for place, name in zip((count - 2, count - 1), names, strict=True):
        given[place] = node.kwargs.get(name, given[place])
    return given


def _embedding(f: FunctionLowering, node: fx.Node) -> Value:
    ids, weight = node.args
    name = str(weight.target)  # type: ignore[union-attr]
    packing = f.weights.packings[name]
    index = f.argument(ids)
    m = f.product(index.shape)
    spec = EmbeddingSpec(packing=packing)
    (out,) = f.kernel(
        ("embedding", spec),
        lambda: embedding(spec, f.target),
        "embedding",
        [f.reshaped(index, (m,)), *f.packed_weight(name)],
        [((m, packing.k), "float32")],
    )
    return Value(out, (*index.shape, packing.k))


# -- activations -----------------------------------------------------------------------------------


def _quantize_spec(node: fx.Node, k: int) -> QuantizeSpec:
    """Find the weight group that activations will meet, from the products that read them."""
    form: TensorFormat = _options(node)["form"]
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


def _wrap_quantized(x: Value, outputs: list[relax.Var]) -> tuple[Value, ...]:
    return tuple(Value(var, (*x.shape[:-1], var.ty.shape[-1])) for var in outputs)


def _quantize(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
    x = f.argument(node.args[0])
    spec = _quantize_spec(node, int(x.shape[-1]))
    rows = _rows(f.row_count(x))
    outputs = f.kernel(
        ("quantize", spec, rows),
        lambda: quantize(spec, f.target, rows),
        f"quantize_{rows}",
        [f.rows(x)],
        _quantized_rows(f, x, spec),
    )
    return _wrap_quantized(x, outputs)


def _norm_inputs(f: FunctionLowering, node: fx.Node, kind: Kind) -> tuple[NormSpec, list[Any]]:
    x = f.argument(node.args[0])
    given = [*node.args[1:], None, None]
    extras = [argument for argument in given if argument is not None]
    spec = NormSpec(
        kind=kind,
        k=int(x.shape[-1]),
        eps=float(_options(node)["eps"]),
        weight=given[0] is not None,
        bias=kind == "layer" and given[1] is not None,
        offset=float(_options(node).get("offset", 0.0)),
    )
    return spec, [f.rows(x), *(f.shaped(f.argument(e)) for e in extras)]


def _norm(kind: Kind) -> Any:
    def lowering(f: FunctionLowering, node: fx.Node) -> Value:
        x = f.argument(node.args[0])
        spec, inputs = _norm_inputs(f, node, kind)
        rows = _rows(f.row_count(x))
        (out,) = f.kernel(
            ("norm", spec, rows),
            lambda: norm(spec, f.target, rows),
            f"{kind}_norm_{rows}",
            inputs,
            [((f.row_count(x), x.shape[-1]), "float32")],
        )
        return Value(out, x.shape)

    return lowering


def _norm_quantize(kind: Kind) -> Any:
    def lowering(f: FunctionLowering, node: fx.Node) -> tuple[Value, ...]:
        x = f.argument(node.args[0])
        spec, inputs = _norm_inputs(f, node, kind)
        form = _quantize_spec(node, spec.k)
        rows = _rows(f.row_count(x))
        outputs = f.kernel(
            ("norm_quantize", spec, form, rows),
            lambda: norm_quantize(spec, form, f.target, rows),
            f"{kind}_norm_quantize_{rows}",
            inputs,
            _quantized_rows(f, x, form),
        )
        return _wrap_quantized(x, outputs)

    return lowering


# -- attention -------------------------------------------------------------------------------------


def _attention(f: FunctionLowering, node: fx.Node) -> Value:
    q, k, v, *caches = (f.argument(a) for a in node.args[:6])
    heads, head_size = int(q.shape[2]), int(q.shape[3])
    spec = _attention_spec(node, heads, caches)
    rows = _rows(q.shape[1])
    (out,) = f.kernel(
        ("attention", spec, rows),
        lambda: attention(spec, f.target, rows),
        f"attention_{rows}",
        [f.shaped(t) for t in (q, k, v, *caches)],
        [(q.shape, "float32")],
    )
    f.kernels[node.name] = (f"attention_{rows}", f"{heads} heads of {head_size}")
    return Value(out, q.shape)


def _attention_spec(node: fx.Node, heads: int, caches: list[Value]) -> AttentionSpec:
    options = _options(node)
    return AttentionSpec(
        heads=heads,
        kv_heads=int(caches[0].shape[1]),
        head_size=int(caches[0].shape[3]),
        scale=float(options["scale"]),
        window=int(options.get("window", 0)),
        softcap=float(options.get("softcap", 0.0)),
    )


def _rope_attention(f: FunctionLowering, node: fx.Node) -> Value:
    qkv, cos, sin, *caches = (f.argument(a) for a in node.args[:6])
    heads = int(_options(node)["heads"])
    spec = RopeAttentionSpec(
        attention=_attention_spec(node, heads, caches),
        rotated=2 * int(cos.shape[-1]),
        interleaved=bool(node.kwargs.get("interleaved", False)),
    )
    rows = _rows(qkv.shape[1])
    shape = (*qkv.shape[:2], heads * spec.attention.head_size)
    (out,) = f.kernel(
        ("rope_attention", spec, rows),
        lambda: rope_attention(spec, f.target, rows),
        f"rope_attention_{rows}",
        [f.shaped(t) for t in (qkv, cos, sin, *caches)],
        [(shape, "float32")],
    )
    f.kernels[node.name] = (
        f"rope_attention_{rows}",
        f"{heads} heads of {spec.attention.head_size}, rotated on the way",
    )
    return Value(out, shape)


def _rotary(f: FunctionLowering, node: fx.Node) -> Value:
    x, cos, sin = (f.argument(a) for a in node.args)
    spec = RotarySpec(
        heads=int(x.shape[2]),
        head_size=int(x.shape[3]),
        rotated=2 * int(cos.shape[-1]),
        interleaved=bool(node.kwargs.get("interleaved", False)),
    )
    (out,) = f.kernel(
        ("rotary", spec),
        lambda: rotary(spec, f.target),
        "rotary",
        [f.shaped(t) for t in (x, cos, sin)],
        [(x.shape, "float32")],
    )
    return Value(out, x.shape)


def _dense_attention(f: FunctionLowering, node: fx.Node) -> Value:
    given = [f.argument(a) for a in node.args]
    q, k, v = given[:3]
    mask = given[3] if len(given) > 3 else None
    kind: Literal["none", "added", "seen"] = "none"
    if mask is not None:
        kind = "seen" if mask.dtype == "bool" else "added"
    sizes = (1,) * 4 if mask is None else mask.shape
    spec = DenseAttentionSpec(
        heads=int(q.shape[2]),
        head_size=int(q.shape[3]),
        scale=float(_options(node)["scale"]),
        mask=kind,
        mask_batch=not _is_one(sizes[0]),
        mask_heads=not _is_one(sizes[1]),
        mask_queries=not _is_one(sizes[2]),
    )
    (out,) = f.kernel(
        ("dense_attention", spec),
        lambda: dense_attention(spec, f.target),
        "dense_attention",
        [f.shaped(t) for t in (q, k, v, mask) if t is not None],
        [(q.shape, "float32")],
    )
    f.kernels[node.name] = ("dense_attention", f"{spec.heads} heads of {spec.head_size}")
    return Value(out, q.shape)


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


OPERATORS = {
    ops.linear: _linear,
    ops.quantized_matmul: _quantized_matmul,
    ops.embedding: _embedding,
    ops.quantized_embedding: _embedding,
    ops.quantize: _quantize,
    ops.rms_norm: _norm("rms"),
    ops.layer_norm: _norm("layer"),
    ops.rms_norm_quantize: _norm_quantize("rms"),
    ops.layer_norm_quantize: _norm_quantize("layer"),
    ops.rotary: _rotary,
    ops.attention: _attention,
    ops.rope_attention: _rope_attention,
    ops.dense_attention: _dense_attention,
}
