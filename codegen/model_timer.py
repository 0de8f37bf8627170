"""Time a whole language model on this machine, compiled in memory, whatever its weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm import relax

from codegen.build import compile_module
from codegen.lower import Lowered, lower
from codegen.timing import best_times, cache_key, code_bytes, kept, stand_ins
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

    def model_seconds(
        self, programs: Sequence[Program], prompt_tokens: int
    ) -> list[tuple[float, float]]:
        """Return the seconds of one token and of a prompt, the best of several; see `ModelTimer`.

        The token comes some 64 tokens after the prompt.
        """
        texts = [hashlib.sha256(print_program(each).encode()).hexdigest() for each in programs]
        formats = [
            [f"{name} {each.weights.format(name)}" for name in each.weights] for each in programs
        ]
        key = cache_key(
            self.target, {"programs": texts, "formats": formats, "prompt_tokens": prompt_tokens}
        )
        found = kept("models", key, lambda: self._measure(programs, prompt_tokens))
        return list(zip(found[::2], found[1::2], strict=True))

    def _measure(self, programs: Sequence[Program], prompt_tokens: int) -> list[float]:
        lowered = [lower(program, self.target) for program in programs]
        # All have their codes in one place: no more memory is taken than the largest takes.
        most = max(code_bytes(each.weights.entries) for each in lowered)
        codes = tvm.runtime.tensor(np.random.default_rng(0).integers(0, 256, most, np.uint8))
        calls = [
            self._calls(*each, prompt_tokens, codes) for each in zip(programs, lowered, strict=True)
        ]
        times = best_times([call for each in calls for call in each], self.prepare)
        found: list[float] = []
        for each in calls:
            (prefill, *decode), times = times[: len(each)], times[len(each) :]
            found += [sum(decode) / len(decode), prefill]
        return found

    def _calls(
        self, program: Program, lowered: Lowered, prompt_tokens: int, codes: tvm.runtime.Tensor
    ) -> list[Callable[[], object]]:
        """Return what runs a prompt, then what decodes each of the tokens after it."""
        compiled = compile_module(lowered.module, self.target)
        library = compiled.executable.jit()
        machine = relax.VirtualMachine(library, tvm.cpu())
        weights = [
            tvm.runtime.from_dlpack(array) if array.dtype == np.uint8 else tvm.runtime.tensor(array)
            for _, array in stand_ins(lowered.weights.entries, codes=np.from_dlpack(codes))
        ]
        capacity = prompt_tokens + _AFTER + _STEPS
        caches = [
            tvm.runtime.tensor(cache.numpy())
            for kv in program.info.kv
            for cache in kv.new(capacity)
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
            # The step keeps addresses alone; the tensors live as long as the prompt's call.
            arrays = [np.from_dlpack(weight) for weight in weights]
            step = self.make_step(
                library.get_function(facts.symbol, query_imports=True),
                facts,
                [ids, position, np.zeros((1, vocabulary), np.float32)],
                arrays,
                self.prepare(),
            )
            step.use_caches([np.from_dlpack(cache) for cache in caches], capacity)

            def decode_at(place: int) -> None:
                ids[0, 0], position[0] = place % vocabulary, place
                step(self.prepare())

            steps = [partial(decode_at, place) for place in places]
        return [prompt, *steps]
