"""Modules without weights: real buffers, parameters that have a shape and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from qcompiler.core.errors import CaptureError

Module = TypeVar("Module", bound=nn.Module)


class _EmptyOnMeta(TorchFunctionMode):
    """Allocate on the meta device what a module leaves to be initialised, which is its parameters.

    Everything computed while a module is built, such as the frequencies of a rotary embedding, is
    computed as usual. The mode belongs to one thread.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.empty_like, torch.empty_strided):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def build_skeleton(build: Callable[[], Module]) -> Module:
    """Build a module whose large parameters take no memory.

    Raises:
        CaptureError: a buffer was left without a value.
    """
    with _EmptyOnMeta():
        module = build()
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise CaptureError(
                f"{type(module).__name__} leaves its buffer '{name}' without a value"
            )
    return module.eval()


def export_mode() -> FakeTensorMode:
    """Return a mode for fake tensors that torch.export takes as parameters and inputs."""
    return FakeTensorMode(
        shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, export=True
    )


def without_weights(module: Module, mode: FakeTensorMode) -> Module:
    """Return a copy of `module` with fake parameters, computing in float32.

    Tied parameters stay tied; buffers are copied.
    """
    memo: dict[int, Any] = {}
    with mode:
        for parameter in module.parameters():
            kind = torch.float32 if parameter.is_floating_point() else parameter.dtype
            fake = torch.empty(parameter.shape, dtype=kind, device="cpu")
            memo[id(parameter)] = nn.Parameter(fake, requires_grad=False)
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(part, name, buffer.to(torch.float32))
    return twin.eval()


def tied_parameters(module: nn.Module) -> dict[str, str]:
    """Return the second names of shared parameters and buffers, each with the first name."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if first.setdefault(id(tensor), name) != name:
                tied[name] = first[id(tensor)]
    return tied


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module compute as it does when it does not train, and put it back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
