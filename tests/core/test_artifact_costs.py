"""Costs are read as they were written, and evaluated where a window ends the context."""

from __future__ import annotations

import dataclasses

from qcompiler.core.artifact import (
    EntryFunction,
    FunctionCosts,
    KernelCost,
    LimitFacts,
    Manifest,
    ModelFacts,
    TargetFacts,
    from_json,
    to_json,
)

COST = KernelCost(
    kernel="attention_one",
    kind="attention",
    arithmetic="float32",
    bytes=((512.0, 0, 1),),
    operations=((256.0, 1, 1), (-128.0, 2, 0), (128.0, 1, 0)),
)
LIMIT = LimitFacts(symbol="l", dtype="uint8", numbers=64, sums=16, sums_dtype="int32", operations=9)
MANIFEST = Manifest(
    kind="module",
    compiler="0",
    model=ModelFacts(name="a", architecture="b", source="c"),
    target=TargetFacts(name="here", arch="x86_64", features=()),
    functions={
        "forward": EntryFunction(
            inputs=(), outputs=(), costs=FunctionCosts(kernels=(COST,), calls=(0, 0))
        )
    },
    limits={"int8": LIMIT},
)


def test_costs_and_limits_are_read_as_they_were_written() -> None:
    assert from_json(to_json(MANIFEST), "here") == MANIFEST


def test_a_manifest_without_costs_is_read() -> None:
    entry = dataclasses.replace(MANIFEST.functions["forward"], costs=None)
    before = dataclasses.replace(MANIFEST, functions={"forward": entry}, limits={})
    text = to_json(before).replace('   "costs": null,\n', "").replace(' "limits": {},\n', "")
    assert "costs" not in text
    assert "limits" not in text
    assert from_json(text, "here") == before


def test_a_token_sees_no_more_than_its_window() -> None:
    windowed = dataclasses.replace(COST, window=10)
    assert windowed.evaluate(1, 8) == COST.evaluate(1, 8)
    assert windowed.evaluate(1, 300) == COST.evaluate(1, 10)
    # Four tokens far behind the beginning see ten each.
    assert windowed.evaluate(4, 300)[1] == 4 * COST.evaluate(1, 10)[1]
