"""Attention with a KV cache as one operator while a causal LM is traced.

transformers lets an attention function, a mask function and a cache of one's own take part in a
model's forward pass; the three below reduce each layer's attention, whatever the family, to one
call of an operator that export leaves alone. It does not say that it changes the caches, or export
would rewrite it; its place is taken by `core.ops.attention` afterwards, which does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from qcompiler.core.errors import CaptureError

IMPLEMENTATION = "qcompiler"

# What a family may hand to its attention function beyond what is understood here and yet
# have computed as usual: neither changes the result.
_HARMLESS = frozenset({"is_causal", "position_ids", "cache_position", "use_cache", "dropout"})
_HARMLESS_FALSE = frozenset({"output_attentions", "output_hidden_states", "output_router_logits"})


@torch.library.custom_op("qcompiler::kv_attention", mutates_args=())
def kv_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Stand for `core.ops.attention` in a trace: q, k, v [1, h, s, d] → [1, s, h, d]."""
    raise NotImplementedError("kv_attention only marks a place in a graph")


@kv_attention.register_fake
def _kv_attention_shape(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    b, h, s, _ = q.shape
    return q.new_empty((b, s, h, v.shape[-1]))


KV_ATTENTION = torch.ops.qcompiler.kv_attention.default


class _KvLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The cache of one layer: two inputs of the graph, which only the attention touches."""

    keys: torch.Tensor
    values: torch.Tensor

    is_compileable = True
    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.position = keys, values, position
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        pass

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        # Families add this to positions; as a tensor it stays part of the graph.
        return self.position  # type: ignore[return-value]

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class KvCaches(Cache):
    """All layers' caches; remembers which layer was updated last, whose attention comes next."""

    def __init__(
        self, pairs: list[tuple[torch.Tensor, torch.Tensor]], position: torch.Tensor
    ) -> None:
        super().__init__(layers=[_KvLayer(k, v, position) for k, v in pairs])
        self.pairs = pairs
        self.position = position
        self.updated = -1
        self.attended: list[int] = []

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.updated = layer_idx
        return key_states, value_states

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        window: int = 0,
        softcap: float = 0.0,
    ) -> torch.Tensor:
        """Emit the attention of one layer.

        Raises:
            CaptureError: a layer attends twice, or its keys do not fit its cache.
        """
        keys, values = self.pairs[layer]
        expected = (keys.shape[1], keys.shape[3])
        for new, cache in ((k, keys), (v, values)):
            if (new.shape[1], new.shape[3]) != (cache.shape[1], cache.shape[3]):
                raise CaptureError(
                    f"layer {layer} makes {new.shape[1]} heads of {new.shape[3]} keys or values, "
                    f"but the configuration says {expected[0]} of {expected[1]}"
                )
        if layer in self.attended:
            raise CaptureError(f"layer {layer} attends more than once, which cannot be captured")
        self.attended.append(layer)
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        out: torch.Tensor = KV_ATTENTION(
            q, k, v, keys, values, self.position, scale, window, softcap
        )
        return out


_CURRENT: ContextVar[KvCaches] = ContextVar("caches of the forward pass being traced")


@contextmanager
def attending_to(caches: KvCaches) -> Iterator[None]:
    """Let attention functions called inside find their caches."""
    token = _CURRENT.set(caches)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Take the place of a model's attention: q, k, v [1, h, s, d] → [1, s, h, d]."""
    if attention_mask is not None:
        raise CaptureError(
            f"{type(module).__name__} makes an attention mask of its own, which cannot be captured"
        )
    for name, given in kwargs.items():
        if name in _HARMLESS or given is None or (name in _HARMLESS_FALSE and given is False):
            continue
        raise CaptureError(
            f"{type(module).__name__} asks its attention for '{name}', which cannot be captured"
        )
    out = _CURRENT.get().attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query,
        key,
        value,
        scale=scaling,
        window=int(sliding_window or 0),
        softcap=float(softcap or 0.0),
    )
    return out, None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Make no mask: the attention operator is causal by itself."""


AttentionInterface.register(IMPLEMENTATION, _attention_function)
AttentionMaskInterface.register(IMPLEMENTATION, _no_mask)


class ForwardMode(TorchFunctionMode):
    """Take part in what a model's forward pass calls while it is traced.

    Families that call `scaled_dot_product_attention` themselves get the same operator. Switching
    gradients on and off is done but not traced: export would spend a tenth of its time on making
    sub-graphs of such regions, only for them to be undone.
    """

    def __init__(self, caches: KvCaches) -> None:
        super().__init__()
        self._caches = caches

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch._C._set_grad_enabled:
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention:
            q, k, v = args[:3]
            scale = kwargs.get("scale")
            out = self._caches.attend(self._caches.updated, q, k, v, scale=scale)
            return out.transpose(1, 2)
        return func(*args, **kwargs)
