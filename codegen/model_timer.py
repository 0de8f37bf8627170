"""Time a whole language model on this machine, compiled in memory, whatever its weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax

from codegen.build import compile_module
from codegen.lower import lower
from codegen.timing import best_times, cache_key, kept, stand_ins
from qcompiler.core.printer import print_program
from qcompiler.core.program import Program
from qcompiler.core.target import Target

_STEPS = 32
"""Tokens that are decoded in each round."""

_AFTER = 48
"""Tokens there are after the prompt before the first of them: `bench` generates 128."""


@dataclass(frozen=True)
class MachineModelTimer:
    """Times language models on this machine; what was timed is kept in the user's cache.

    `prepare` is called before every function: it sets up the threads as the runtime does, and says
    how many there are. `make_step` makes a step callable, as the runtime does.
    """

    target: Target
    prepare: Callable[[], int]
    make_step: Callable[..., Any]

    def model_seconds(self, program: Program, prompt_tokens: int) -> tuple[float, float]:
        """Return the seconds of one token and of a prompt, the best of several; see `ModelTimer`.

        The token comes some 64 tokens after the prompt.
        """
        text = hashlib.sha256(print_program(program).encode()).hexdigest()
        formats = [f"{name} {program.weights.format(name)}" for name in program.weights]
        key = cache_key(
            self.target, {"program": text, "formats": formats, "prompt_tokens": prompt_tokens}
        )
        decode, prefill = kept("models", key, lambda: self._measure(program, prompt_tokens))
        return decode, prefill

    def _measure(self, program: Program, prompt_tokens: int) -> list[float]:
        lowered = lower(program, self.target)
        compiled = compile_module(lowered.module, self.target)
        library = compiled.executable.jit()
        machine = relax.VirtualMachine(library, tvm.cpu())
        weights = [tvm.runtime.tensor(a) for _, a in stand_ins(lowered.weights.entries)]
        capacity = prompt_tokens + _AFTER + _STEPS
        caches = [
            tvm.runtime.tensor(np.zeros((1, kv.heads, capacity, kv.head_dim), np.float32))
            for kv in program.info.kv
            for _ in "kv"
        ]

        def call(name: str, **inputs: np.ndarray) -> Callable[[], object]:
            names, _ = lowered.functions[name]
            given = [tvm.runtime.tensor(inputs[each]) for each in names]
            return partial(machine[name], *given, caches, weights)

        vocabulary = program.info.vocab_size or 1
        ids = (np.arange(prompt_tokens) * 37 % vocabulary)[None].astype(np.int64)
        last = np.array([prompt_tokens - 1])
        prompt = call("prefill", ids=ids, position=np.array([0]), rows=last)
        places = range(capacity - _STEPS, capacity)
        facts = compiled.steps.get("decode")
        if facts is None:
            steps = [
                call("decode", ids=np.array([[p % vocabulary]]), position=np.array([p]))
                for p in places
            ]
        else:
            ids, position = np.zeros((1, 1), np.int64), np.zeros(1, np.int64)
            arrays = [weight.numpy() for weight in weights]  # which the step does not keep
            step = self.make_step(
                library.get_function(facts.symbol, query_imports=True),
                facts,
                [ids, position, np.zeros((1, vocabulary), np.float32)],
                arrays,
                self.prepare(),
            )
            step.use_caches([cache.numpy() for cache in caches], capacity)

            def decode_at(place: int) -> None:
                ids[0, 0], position[0] = place % vocabulary, place
                step(self.prepare())

            steps = [partial(decode_at, place) for place in places]
        prefill, *decode = best_times([prompt, *steps], self.prepare)
        return [sum(decode) / len(decode), prefill]
