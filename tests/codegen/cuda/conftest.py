"""Whole programs on the emulated GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm
from tvm import relax

from codegen.build import compile_module
from codegen.cuda.compiler import compiling_by
from codegen.cuda.emulation.device import compile_for_host, use_emulated_device
from codegen.lower import lower
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import Program
from qcompiler.core.target import Target


@pytest.fixture(scope="session", autouse=True)
def device() -> Any:
    """The emulated GPU."""
    use_emulated_device()
    return tvm.cuda(0)


class CompiledForGpu:
    """A lowered program in memory, with its weights on the emulated device."""

    def __init__(self, program: Program, target: Target, device: Any) -> None:
        self.program, self._device = program, device
        self.lowered = lower(program, target)
        self.sources: list[str] = []

        def compiler(source: str) -> bytes:
            self.sources.append(source)
            return compile_for_host(source)

        with compiling_by(compiler):
            made = compile_module(self.lowered.module, target, operators=self.lowered.operators)
        self.notes, self.costs = made.notes, made.costs
        self._machine = relax.VirtualMachine(made.executable.jit(), device)
        self._weights = [self._tensor(a) for _, a in self.lowered.weights.arrays()]

    def _tensor(self, array: Any) -> Any:
        return tvm.runtime.tensor(array, self._device)

    def new_caches(self, context: int) -> list[torch.Tensor]:
        """Return empty caches with room for `context` tokens."""
        return TorchLanguageModel(self.program).new_caches(context)

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run the only function of a module."""
        return self.call("forward", inputs, [])

    def call(
        self, name: str, inputs: tuple[torch.Tensor, ...], caches: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Run a function; caches change."""
        given = [self._tensor(tensor.numpy()) for tensor in inputs]
        kv = [self._tensor(cache.numpy()) for cache in caches]
        out = self._machine[name](*given, *([kv] if kv else []), self._weights)
        for cache, changed in zip(caches, kv, strict=True):
            cache.copy_(torch.from_numpy(changed.numpy()))
        results = [out] if hasattr(out, "numpy") else out
        return [torch.from_numpy(result.numpy()) for result in results]

    def step(
        self, ids: torch.Tensor, position: int, rows: torch.Tensor, caches: list[torch.Tensor]
    ) -> torch.Tensor:
        """Do what `TorchLanguageModel.step` does: one token by `decode`, more by `prefill`."""
        name = "decode" if ids.shape[1] == 1 else "prefill"
        given = {"ids": ids, "position": torch.tensor([position]), "rows": rows}
        names, _ = self.lowered.functions[name]
        (logits,) = self.call(name, tuple(given[n] for n in names), caches)
        return logits[0]


@pytest.fixture
def on_gpu(device: Any) -> Any:
    """Return a function that lowers and compiles a legal program for the emulated GPU."""
    return lambda program, target: CompiledForGpu(program, target, device)
