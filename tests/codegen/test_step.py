"""A step gives what its kernels give one by one: on any number of threads, call after call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from tvm import relax, tirx

from codegen import build
from codegen.kernels import single_attention
from codegen.lower import lower
from codegen.step import NotAStep, _Region, make_step
from codegen.team import NotForATeam
from qcompiler.core.artifact import LINE_BYTES
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.runtime.step import Step
from qcompiler.runtime.tensors import aligned_zeros
from targets import find
from tests.families import tiny_model

pytestmark = pytest.mark.tvm

Compiled = Callable[..., Any]


def tokens_one_by_one(compiled: Any, threads: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Read 30 tokens, each alone; return the logits and what the caches then hold."""
    caches = compiled.new_caches(32)
    ids = torch.randint(0, 256, (30,), generator=torch.Generator().manual_seed(5))
    compiled.threads = threads
    rows = [
        compiled.step(token.reshape(1, 1), place, torch.tensor([0]), caches)
        for place, token in enumerate(ids)
    ]
    return torch.cat(rows), caches


@pytest.fixture
def llama(legal: Callable[..., Program]) -> Program:
    return legal(capture(tiny_model("llama")), find("native"), "w4a8g32")


@pytest.fixture
def static_llama(legal: Callable[..., Program]) -> Program:
    samples = ((torch.arange(30),),)
    return legal(capture(tiny_model("llama")), find("native"), "w8a8s", samples)


@pytest.mark.parametrize("serial_bytes", [1 << 17, 1])
def test_a_step_gives_what_its_kernels_give(
    serial_bytes: int, llama: Program, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_attention, "_SERIAL_BYTES", serial_bytes)
    whole, parts = compiled(llama, find("native")), compiled(llama, find("native"), steps=())
    assert "decode" in whole.steps
    assert not parts.steps
    expected, expected_caches = tokens_one_by_one(parts, 2)
    for threads in (1, 2, 1, 2):
        logits, caches = tokens_one_by_one(whole, threads)
        assert torch.equal(logits, expected)
        assert all(map(torch.equal, caches, expected_caches))


@pytest.mark.slow
def test_a_step_reads_static_scales(static_llama: Program, compiled: Compiled) -> None:
    whole = compiled(static_llama, find("native"))
    parts = compiled(static_llama, find("native"), steps=())
    assert "decode" in whole.steps
    expected, _ = tokens_one_by_one(parts, 2)
    for threads in (1, 2, 1):
        assert torch.equal(tokens_one_by_one(whole, threads)[0], expected)


def relax_function(shape: tuple[Any, ...], *, constant: bool = False) -> Any:
    """Return a scheduled module with decode(x [shape], caches, weights) = x + 1 (+ a constant)."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(list(shape), "float32"))
    empty = [relax.Var(name, relax.TupleType([])) for name in ("kv", "weights")]
    with builder.function("decode", [x, *empty]):
        with builder.dataflow():
            one = relax.const(np.ones(4, np.float32)) if constant else x
            y = builder.emit_te(lambda a, b: _sum(a, b), x, one)
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.finalize()


def _sum(a: Any, b: Any) -> Any:
    from tvm import topi

    return topi.add(a, b)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: relax_function((tirx.Var("m", "int64"), tirx.Var("n", "int64"))), "several sizes"),
        (lambda: relax_function((tirx.Var("m", "int64"),)), "the size of a result varies"),
        (lambda: relax_function((4,), constant=True), "takes a constant"),
    ],
)
def test_what_cannot_be_a_step_is_refused(module: Callable[[], Any], reason: str) -> None:
    with pytest.raises(NotAStep, match=reason):
        make_step(module(), "decode", find("native"))


def test_a_function_that_is_no_step_is_compiled_as_before_and_that_is_said(
    llama: Program, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(module: Any, name: str, target: Any) -> None:
        raise NotForATeam("a test says so")

    monkeypatch.setattr(build, "make_step", refuse)
    made = build.compile_module(lower(llama, find("native")).module, find("native"))
    assert made.steps == {}
    assert made.notes == ("decode runs kernel by kernel, and not as a whole: a test says so",)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), max_size=30))
def test_pieces_of_memory_in_use_at_one_time_are_apart(wanted: list[tuple[int, int]]) -> None:
    region = _Region()
    taken: list[tuple[int, int, int, int]] = []
    for begin, (size, lasts) in enumerate(wanted):
        offset = region.take(size, begin, begin + lasts)
        assert offset % LINE_BYTES == 0
        assert offset + size <= region.size
        for other, length, _, end in taken:
            if end >= begin:
                assert offset + size <= other or other + length <= offset
        taken.append((offset, size, begin, begin + lasts))


def test_each_kernel_leaves_a_stamp_behind(llama: Program, compiled: Compiled) -> None:
    whole = compiled(llama, find("native"))
    caches = whole.new_caches(8)
    facts = whole.steps["decode"]
    arrays = [np.zeros((1, 1), np.int64), np.zeros(1, np.int64), np.zeros((1, 256), np.float32)]
    given = [aligned_zeros(a.shape, a.dtype) for a in arrays]
    kv = [aligned_zeros(tuple(cache.shape), np.float32) for cache in caches]
    function = whole._library.get_function(facts.symbol, query_imports=True)
    step = Step(function, facts, given, whole._arrays, 2)
    step.use_caches(kv, 8)
    for threads in (2, 1):
        step(threads)
        stamps = step.stamps()
        assert stamps.size == facts.stamps > 20
        assert (np.diff(stamps) > 0).all()
