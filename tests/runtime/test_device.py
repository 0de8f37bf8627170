"""Artifacts for a GPU: run on an emulated one, and refused where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler.core.artifact import TargetFacts
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime import LanguageModel, device
from qcompiler.runtime.device import Processor, open_device

# A process has one CUDA driver, and the emulated one must be there before TVM is loaded.
BUILD = """
import sys
from pathlib import Path
from codegen.cuda.emulation.device import compile_for_host, use_emulated_device
use_emulated_device()
import qcompiler
from codegen.cuda.compiler import compiling_by
with compiling_by(compile_for_host):
    qcompiler.compile(Path(sys.argv[1]), target="cuda-sm80", pipeline="w4a8", output=sys.argv[2])
"""
RUN = """
import sys, tempfile
from pathlib import Path
import numpy as np
from codegen.cuda.emulation.device import load_driver
load_driver(Path(tempfile.mkdtemp(dir=sys.argv[3])))
from qcompiler.runtime import kv_cache, load
kv_cache.SMALLEST = 8  # so that room runs out
model = load(sys.argv[1])
session = model.new_session()
ids = np.arange(3, 12)
rows = [session.prefill(ids[:6]), *(session.decode(int(i)) for i in ids[6:])]
assert session.cache_bytes
np.save(sys.argv[2], np.stack(rows))
"""


def python(code: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.tvm
@pytest.mark.timeout(600)
def test_an_artifact_on_the_emulated_gpu(tmp_path: Path) -> None:
    import qcompiler
    from tests.families import tiny_model

    folder = tmp_path / "tiny.hf"
    tiny_model("llama").save_pretrained(folder)
    python(BUILD, folder, tmp_path / "gpu.qc")
    python(RUN, tmp_path / "gpu.qc", tmp_path / "rows.npy", tmp_path)
    model = qcompiler.compile(folder, pipeline="w4a8").load()
    assert isinstance(model, LanguageModel)
    expected = model.logits(np.arange(3, 12))[5:]
    actual = np.load(tmp_path / "rows.npy")
    error = np.square(expected - actual).sum() / np.square(expected).sum()
    assert -10 * np.log10(error) > 30
    assert np.array_equal(expected.argmax(1), actual.argmax(1))


def facts(capability: int) -> TargetFacts:
    return TargetFacts(name="cuda-sm80", arch="x86_64", features=(), compute_capability=capability)


def test_the_processor_shares_memory(tmp_path: Path) -> None:
    processor = open_device(facts(0), tmp_path)
    assert isinstance(processor, Processor)
    array = torch.arange(64.0).numpy()
    assert np.array_equal(processor.download(processor.upload(array)), array)


def test_no_driver_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "_DRIVER", "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(device, "bindings", lambda: NoFunctions)
    with pytest.raises(
        ArtifactError, match=r"compiled for cuda-sm80, and this machine has no NVIDIA"
    ):
        open_device(facts(80), tmp_path)


class NoFunctions:
    """The bindings of a process without TVM's CUDA runtime."""

    @staticmethod
    def get_global_func(name: str, allow_missing: bool) -> None:
        return None
