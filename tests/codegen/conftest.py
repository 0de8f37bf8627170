"""Bring programs down to LEGAL, compile them in memory, and run what comes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

# Read when TVM starts its threads; parallel loops are to be tested with more than one.
os.environ.setdefault("TVM_NUM_THREADS", "2")

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from codegen.build import compile_module
from codegen.lower import lower
from passes.canonicalize import Canonicalize
from passes.fuse_epilogue import FuseEpilogue
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_norm import FuseNorm
from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.legalize import Legalize
from passes.observe_activations import ObserveActivations
from passes.quantize_rtn import QuantizeRtn
from passes.set_bits import Rule, SetBits
from qcompiler.core.calibration import Calibration
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.target import Target
from qcompiler.runtime.step import Step
from qcompiler.runtime.tensors import aligned_zeros

FUSE = (FuseQkv(), FuseGateUp(), FuseEpilogue(), FuseRope(), FuseNorm())


@pytest.fixture
def legal() -> Callable[..., Program]:
    """Return a function that runs all passes on a captured program; a scheme quantises it.

    A static one takes samples.
    """

    def run(
        program: Program,
        target: Target,
        scheme: str = "float",
        samples: tuple[tuple[torch.Tensor, ...], ...] = (),
    ) -> Program:
        steps: tuple[Pass, ...] = ()
        if scheme != "float":
            observe = (ObserveActivations(),) if samples else ()
            steps = (SetBits(rules=(Rule(scheme=scheme),)), *observe, QuantizeRtn())
        context = PassContext(
            target=target, calibration=Calibration(samples=samples, source="a test")
        )
        steps = (Canonicalize(), *steps, *FUSE, Legalize())
        Pipeline(steps, start=program.stage).run(program, context)
        return program

    return run


class CompiledProgram:
    """A lowered program in memory, with its weights."""

    def __init__(self, program: Program, target: Target, **options: Any) -> None:
        self.program = program
        self.lowered = lower(program, target)
        made = compile_module(self.lowered.module, target, **options)
        self.executable, self.steps = made.executable, made.steps
        self.threads = 2
        self._library = self.executable.jit()
        self._machine = relax.VirtualMachine(self._library, tvm.cpu())
        self._weights = [tvm.runtime.tensor(array) for _, array in self.lowered.weights.arrays()]
        self._arrays = [weight.numpy() for weight in self._weights]

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
        if name in self.steps:
            return self._call_step(name, inputs, caches)
        given = [tvm.runtime.tensor(tensor.numpy()) for tensor in inputs]
        kv = [tvm.runtime.tensor(cache.numpy()) for cache in caches]
        out = self._machine[name](*given, *([kv] if kv else []), self._weights)
        for cache, changed in zip(caches, kv, strict=True):
            cache.copy_(torch.from_numpy(changed.numpy()))
        results = [out] if hasattr(out, "numpy") else out
        return [torch.from_numpy(np.array(result.numpy())) for result in results]

    def _call_step(
        self, name: str, inputs: tuple[torch.Tensor, ...], caches: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        facts = self.steps[name]
        logits = aligned_zeros((1, 1, self.program.info.vocab_size or 0), np.float32)
        given = [aligned_zeros(tuple(tensor.shape), np.int64) for tensor in inputs]
        for array, tensor in zip(given, inputs, strict=True):
            array[...] = tensor.numpy()
        step = Step(
            self._library.get_function(facts.symbol, query_imports=True),
            facts,
            [*given, logits],
            self._arrays,
            self.threads,
        )
        kv = [aligned_zeros(tuple(cache.shape), np.float32) for cache in caches]
        for array, cache in zip(kv, caches, strict=True):
            array[...] = cache.numpy()
        step.use_caches(kv, caches[0].shape[2] if caches else 0)
        step(self.threads)
        for array, cache in zip(kv, caches, strict=True):
            cache.copy_(torch.from_numpy(array))
        return [torch.from_numpy(logits)]

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
def compiled() -> Callable[..., CompiledProgram]:
    """Return a function that lowers and compiles a legal program."""
    return CompiledProgram
