"""`qcompiler inspect` on an artifact that was written for the purpose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qcompiler import cli
from qcompiler.core.artifact import (
    EntryFunction,
    KernelChoice,
    Manifest,
    ModelFacts,
    TargetFacts,
    TensorSpec,
    write_artifact,
)

WEIGHTS = {
    "layers.0.up.weight/codes": np.zeros(100, np.uint8),
    "layers.0.up.weight/scales": np.zeros(10, np.float16),
    "layers.0.norm.weight": np.zeros(64, np.float32),
    "lm_head.weight/weights": np.zeros(32, np.float32),
}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    function = EntryFunction(inputs=(), outputs=())
    manifest = Manifest(
        kind="causal-lm",
        compiler="0.1.0",
        model=ModelFacts(
            name="tiny", architecture="llama", source="", vocab_size=8, max_context=128
        ),
        target=TargetFacts(name="x86-64-v3", arch="x86_64", features=("avx2", "fma")),
        plan={"layers.0.up": "w4a8g32"},
        kernels={
            "layers.0.up (prefill)": KernelChoice(kernel="gemm_w4a8", reason="many rows"),
            "layers.0.up (decode)": KernelChoice(kernel="gemv_w4a8", reason="one row"),
            "lm_head": KernelChoice(kernel="gemv_f32", reason="float"),
        },
        functions={"prefill": function, "decode": function},
        weights=tuple(
            TensorSpec(name=name, dtype=str(array.dtype), shape=array.shape)
            for name, array in WEIGHTS.items()
        ),
        measured={"sqnr_db": 43.25},
    )
    folder = tmp_path / "tiny.qc"
    write_artifact(folder, manifest, {"model.so": b"code"}, WEIGHTS.items())
    return folder


def test_each_layer_has_scheme_size_and_kernel(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(artifact)]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    assert lines["layers.0.up"] == [
        *("layers.0.up", "w4a8g32", "120", "B", "decode", "gemv_w4a8,", "prefill", "gemm_w4a8")
    ]
    assert lines["layers.0.norm"] == ["layers.0.norm", "float32", "256", "B"]
    assert lines["lm_head"] == ["lm_head", "float32", "128", "B", "gemv_f32"]
    assert lines["target"] == ["target", "x86-64-v3:", "avx2", "fma"]
    assert lines["context"] == ["context", "128", "tokens"]
    assert lines["sqnr_db"] == ["sqnr_db", "43.25"]


def test_json_says_the_same(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(artifact), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "tiny"
    assert found["weight_bytes"] == sum(layer["weight_bytes"] for layer in found["layers"]) == 504
    assert found["artifact_bytes"] >= found["weight_bytes"] + 4
    assert found["layers"][0] == {
        "name": "layers.0.up",
        "scheme": "w4a8g32",
        "weight_bytes": 120,
        "kernel": "decode gemv_w4a8, prefill gemm_w4a8",
    }


def test_what_is_no_artifact_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert "is no artifact" in capsys.readouterr().err
