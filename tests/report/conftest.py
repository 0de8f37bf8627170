"""A manifest and a report with something in every section."""

from __future__ import annotations

from typing import Any

import pytest

from qcompiler.core.artifact import (
    EntryFunction,
    FileRecord,
    KernelChoice,
    Manifest,
    ModelFacts,
    TargetFacts,
)

KINDS = ("self_attn.qkv_proj", "mlp.up_proj", "mlp.down_proj")
OPERATORS = [f"model.layers.{layer}.{kind}" for layer in range(3) for kind in KINDS]


@pytest.fixture
def manifest() -> Manifest:
    function = EntryFunction(inputs=(), outputs=())
    return Manifest(
        kind="causal-lm",
        compiler="0.1.0",
        model=ModelFacts(
            name="tiny & small", architecture="llama", source="", vocab_size=8, max_context=128
        ),
        target=TargetFacts(name="x86-64-v3", arch="x86_64", features=("avx2", "fma")),
        pipeline=(
            {"name": "canonicalize"},
            {"name": "set-bits", "rules": [{"pattern": "*", "scheme": "w4a8g32"}]},
        ),
        plan=dict.fromkeys(OPERATORS, "w4a8g32"),
        kernels={
            f"{name} ({function})": KernelChoice(kernel=f"gemm_{function}", reason="it fits")
            for name in OPERATORS
            for function in ("prefill", "decode")
        },
        functions={"prefill": function, "decode": function},
        files={"model.so": FileRecord(sha256="", bytes=3_400_000)},
    )


@pytest.fixture
def content() -> dict[str, Any]:
    """What passes record, as `docs/report.md` has it."""
    front = [{"loss": 0.4 / n, "bits_per_weight": 3.0 + n, "bytes": 1e6 * n} for n in range(1, 5)]
    return {
        "schema": 1,
        "pipeline": [{"name": "canonicalize"}],
        "notes": {"fuse-qkv": ["layer 0: joined", "layer 1: joined", "<b>no markup</b>"]},
        "calibration": {
            "source": "some text",
            "generated": False,
            "samples": 2,
            "tokens": 64,
            "distinct_tokens": 30,
            "vocabulary": 300,
        },
        "operators": {
            name: {"shape": [64, 32], "scheme": "w4a8g32", "bits_per_weight": 4.5}
            for name in OPERATORS
        }
        | {"lm_head": {"shape": [300, 32], "scheme": None, "bits_per_weight": 32.0}},
        "records": {
            "measure-sensitivity": {
                "metric": "kl",
                "unit": "nats per token",
                "loss": {name: {"w4a8g32": 0.002, "w8a8g32": 1e-5} for name in OPERATORS},
            },
            "measure-cost": {
                "method": "timed kernels",
                "bytes": {name: {"w4a8g32": 1152, "w8a8g32": 2176} for name in OPERATORS},
            },
            "allocate-bits": {
                "objective": 0.1,
                "bound": 0.0999,
                "gap": 0.001,
                "unit": "nats per token",
                "budgets": {"bits_per_weight": 5.0},
                "prices": {"bits_per_weight": 0.08},
                "front": front,
                "chosen": front[1],
                "others": {"uniform w4a8g64": [{"loss": 0.3, "bits_per_weight": 4.25}]},
            },
            "quantize-gptq": {
                "measure": "relative output error",
                "operators": {
                    name: {"before": 0.1, "after": 0.05, "method": "gptq", "damping": 0.04}
                    for name in OPERATORS
                },
            },
            "quantize-signround": {
                "blocks_measure": "mean squared error",
                "blocks": [
                    {"block": n, "before": 0.1, "after": 0.04, "iterations": 9, "best": 7}
                    for n in range(3)
                ],
                "curves": [[0.1, 0.06, 0.04]] * 3,
            },
            "my-pass": {"findings": {"a": 1}},
        },
    }


@pytest.fixture
def times() -> dict[str, Any]:
    return {
        "schema": 1,
        "steps": [["capture", 1.5], ["quantize-gptq", 190.0]],
        "records": {
            "measure-cost": {"decode": {name: {"w4a8g32": 3e-5} for name in OPERATORS}},
        },
    }
