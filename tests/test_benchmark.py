"""A benchmark of a small artifact, from compiling it to every kernel's time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qcompiler
from qcompiler.benchmark import BenchResult, bench
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime import LanguageModel, load
from qcompiler.runtime.kernel_times import time_decode, time_prefill
from tests.families import tiny_model

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "tiny.qc"
    qcompiler.compile(tiny_model("llama"), pipeline="w4a8", output=folder)
    return folder


@pytest.fixture(scope="module")
def found(artifact: Path) -> BenchResult:
    return bench(artifact, prompt_tokens=20, generate_tokens=9, repeats=2)


def test_each_function_is_told_kind_by_kind(found: BenchResult) -> None:
    prefill, decode = found.functions
    assert (prefill.name, prefill.tokens, prefill.context) == ("prefill", 20, 20)
    assert (decode.name, decode.tokens, decode.context) == ("decode", 1, 25)
    for function in found.functions:
        assert {"product w4a8", "attention", "head"} <= {kind.kind for kind in function.kinds}
        assert all(kind.seconds > 0 for kind in function.kinds)
        assert sum(kind.seconds for kind in function.kinds) <= function.seconds * (1 + 1e-9)


def test_limits_are_measured(found: BenchResult) -> None:
    assert found.limits is not None
    assert found.limits.int8 > found.limits.float32 > found.limits.bytes > 1e8


def test_a_single_token_is_enough(artifact: Path) -> None:
    found = bench(artifact, prompt_tokens=1, generate_tokens=1, repeats=1, threads=1)
    (decode,) = found.functions
    assert decode.name == "decode"
    assert decode.total.seconds < 1


def test_code_that_does_not_fit_the_manifest_is_refused(artifact: Path) -> None:
    with load(artifact) as model:
        assert isinstance(model, LanguageModel)
        session = model.new_session()
        functions = model.manifest.functions
        prefill, decode = functions["prefill"].costs, functions["decode"].costs
        assert prefill is not None
        assert decode is not None
        ids = np.arange(5)
        # A kernel that other layers call as well is missing.
        missing = prefill.calls.index(prefill.calls[-2])
        fewer = [
            replace(costs, calls=costs.calls[:missing] + costs.calls[missing + 1 :])
            for costs in (prefill, decode)
        ]
        with pytest.raises(ArtifactError, match="kernels that its manifest knows"):
            time_prefill(model.executable, session, fewer[0], ids, 1)
        with pytest.raises(ArtifactError, match="kernels that its manifest knows"):
            time_decode(model.executable, session, fewer[1], [1, 2])
        # Nobody is watching any more, and nothing has changed.
        session.reset()
        expected = session.score(ids)
        session.reset()
        assert np.array_equal(session.score(ids), expected)


def test_the_peak_of_memory_is_not_that_of_whoever_started_the_process(
    python: Callable[[str], str],
) -> None:
    # A child begins with its parent's peak in what getrusage tells.
    large = np.ones(300 << 20, np.uint8)
    own = int(
        python(
            "from qcompiler.benchmark_process import peak_memory_bytes; print(peak_memory_bytes())"
        )
    )
    assert own < large.nbytes


@pytest.fixture
def python() -> Callable[[str], str]:
    def run(code: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout

    return run
