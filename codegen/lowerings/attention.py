"""Attention, with a cache or without, and rotary position embedding."""

from __future__ import annotations

from torch import fx
from tvm import relax

from codegen.function_lowering import FunctionLowering, Value
from codegen.kernels import attention as cached
from codegen.kernels import dense_attention as dense
from codegen.kernels import rope_attention as fused
from codegen.kernels import rotary as turns
from codegen.lowerings.arguments import is_one, options, rows_of
from codegen.lowerings.views import broadcast
from qcompiler.core import ops
from qcompiler.core.errors import UnsupportedError
from qcompiler.core.kv_format import KvFormat, pair


def attention(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower attention over a cache."""
    q, k, v, *caches = (f.argument(a) for a in node.args[:6])
    heads, head_size = int(q.shape[2]), int(q.shape[3])
    rows = rows_of(q.shape[1])
    ahead = _read_next(f, node) if rows == "one" else []
    spec = _attention_spec(node, heads, head_size, caches, ahead)
    (out,) = f.kernel(
        ("attention", spec, rows),
        lambda: f.kernel_set.attention(spec, f.target, rows),
        f"attention_{rows}",
        [*(f.shaped(t) for t in (q, k, v, *caches)), *ahead],
        [(q.shape, "float32")],
    )
    f.kernels[node.name] = (f"attention_{rows}", _reason(spec))
    return Value(out, q.shape)


def _read_next(f: FunctionLowering, node: fx.Node) -> list[relax.Var]:
    """Return the codes of the next two products, or of fewer.

    Attention of one token computes for longer than it reads, and can ask for them meanwhile.
    """
    found: list[relax.Var] = []
    if not f.kernel_set.asks_ahead:
        return found
    following = node.next
    while following.op != "output" and len(found) < 2:
        if following.target is ops.quantized_matmul:
            found += f.packed_weight(str(following.args[2].target))[:1]  # type: ignore[union-attr]
        following = following.next
    return found


def _attention_spec(
    node: fx.Node, heads: int, head_size: int, caches: list[Value], ahead: list[relax.Var]
) -> cached.AttentionSpec:
    given = options(node)
    keys, values = (
        KvFormat.parse(text) if text else None for text in pair(str(given.get("kv", "")))
    )
    return cached.AttentionSpec(
        heads=heads,
        kv_heads=int(caches[0].shape[1]),
        head_size=head_size,
        scale=float(given["scale"]),
        window=int(given.get("window", 0)),
        softcap=float(given.get("softcap", 0.0)),
        keys=keys,
        values=values,
        ahead=tuple(int(var.ty.shape[0]) for var in ahead),
    )


def _reason(spec: cached.AttentionSpec) -> str:
    forms = [str(form) for form in (spec.keys, spec.values) if form is not None]
    cache = f", cached as {'/'.join(dict.fromkeys(forms))}" if forms else ""
    return f"{spec.heads} heads of {spec.head_size}{cache}"


def rope_attention(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower attention over a cache that takes the fused product and rotates it."""
    qkv, cos, sin, *caches = (f.argument(a) for a in node.args[:6])
    heads = int(options(node)["heads"])
    head_size = int(qkv.shape[2]) // (heads + 2 * int(caches[0].shape[1]))
    rows = rows_of(qkv.shape[1])
    ahead = _read_next(f, node) if rows == "one" else []
    means = [f.argument(mean) for mean in node.args[6:]]
    spec = fused.RopeAttentionSpec(
        attention=_attention_spec(node, heads, head_size, caches, ahead),
        rotated=2 * int(cos.shape[-1]),
        interleaved=bool(node.kwargs.get("interleaved", False)),
        centred=bool(means),
    )
    shape = (*qkv.shape[:2], heads * spec.attention.head_size)
    (out,) = f.kernel(
        ("rope_attention", spec, rows),
        lambda: f.kernel_set.rope_attention(spec, f.target, rows),
        f"rope_attention_{rows}",
        [*(f.shaped(t) for t in (qkv, cos, sin, *means, *caches)), *ahead],
        [(shape, "float32")],
    )
    f.kernels[node.name] = (
        f"rope_attention_{rows}",
        f"{_reason(spec.attention)}, rotated on the way{', keys centred' if means else ''}",
    )
    return Value(out, shape)


def rotary(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower the rotation of heads."""
    x, cos, sin = (f.argument(a) for a in node.args)
    spec = turns.RotarySpec(
        heads=int(x.shape[2]),
        head_size=int(x.shape[3]),
        rotated=2 * int(cos.shape[-1]),
        interleaved=bool(node.kwargs.get("interleaved", False)),
    )
    (out,) = f.kernel(
        ("rotary", spec),
        lambda: f.kernel_set.rotary(spec, f.target),
        "rotary",
        [f.shaped(t) for t in (x, cos, sin)],
        [(x.shape, "float32")],
    )
    f.kernels[node.name] = ("rotary", f"{spec.heads} heads of {spec.head_size}")
    return Value(out, x.shape)


def dense_attention(f: FunctionLowering, node: fx.Node) -> Value:
    """Lower attention without a cache."""
    q, k, v, *rest = (f.argument(a) for a in node.args)
    if not all(f.equal(*sizes) for t in (k, v) for sizes in zip(q.shape, t.shape, strict=True)):
        raise UnsupportedError(
            f"{node.name}: attention of one sequence to another, or of heads in groups, has no "
            "kernel without a cache; give queries, keys and values the same shape"
        )
    mask = _mask(f, q, rest[0] if rest else None)
    sizes = (1,) * 4 if mask is None else mask.shape
    spec = dense.DenseAttentionSpec(
        heads=int(q.shape[2]),
        head_size=int(q.shape[3]),
        scale=float(options(node)["scale"]),
        mask="none" if mask is None else "seen" if mask.dtype == "bool" else "added",
        mask_batch=not is_one(sizes[0]),
        mask_heads=not is_one(sizes[1]),
        mask_queries=not is_one(sizes[2]),
    )
    (out,) = f.kernel(
        ("dense_attention", spec),
        lambda: f.kernel_set.dense_attention(spec, f.target),
        "dense_attention",
        [f.shaped(t) for t in (q, k, v, mask) if t is not None],
        [(q.shape, "float32")],
    )
    f.kernels[node.name] = ("dense_attention", f"{spec.heads} heads of {spec.head_size}")
    return Value(out, q.shape)


def _mask(f: FunctionLowering, q: Value, mask: Value | None) -> Value | None:
    """Return a mask with four axes, the last of which is that of the keys."""
    if mask is None:
        return None
    shape = (1,) * (4 - len(mask.shape)) + mask.shape
    return broadcast(f, Value(mask.var, shape), (*shape[:3], q.shape[1]))
