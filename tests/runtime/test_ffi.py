"""What running an artifact imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "tvm", "transformers", "jinja2", "pydantic", "scipy")


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.tvm
def test_running_a_model_imports_neither_torch_nor_the_compiler(lm_folder: Path) -> None:
    code = f"""
import sys
from qcompiler.runtime import load
with load(sys.argv[1]) as lm:
    text = "".join(lm.generate("the cat", max_tokens=5))
    assert text
print([name for name in {HEAVY} if name in sys.modules])
assert "tvm_ffi" in sys.modules
"""
    assert run(code, str(lm_folder)) == "[]"


def test_importing_the_runtime_loads_no_machine_code() -> None:
    code = f"""
import sys
import qcompiler.runtime
print([name for name in {(*HEAVY, "tvm_ffi")} if name in sys.modules])
"""
    assert run(code) == "[]"


def test_torch_can_be_imported_afterwards() -> None:
    code = """
import sys
from qcompiler.runtime.ffi import bindings
ffi = bindings()
assert "torch" not in sys.modules
import torch
print(torch.ones(2).sum().item(), ffi.from_dlpack(torch.ones(3)).shape)
"""
    assert run(code) == "2.0 (3,)"


def test_missing_package_is_said_in_a_sentence() -> None:
    code = """
import sys
sys.modules["tvm_ffi"] = None
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime.ffi import bindings
try:
    bindings()
except ArtifactError as error:
    print(error)
"""
    said = run(code)
    assert said.startswith("running an artifact needs the package apache-tvm-ffi")
    assert said.endswith("install it with 'pip install apache-tvm-ffi'")


@pytest.mark.tvm
@pytest.mark.parametrize("first", ["load", "compiler"])
def test_runtime_and_compiler_share_a_process(lm_folder: Path, first: str) -> None:
    """Two copies of TVM's runtime library in one process abort it."""
    code = """
import sys
from qcompiler.runtime import load
if sys.argv[2] == "compiler":
    import tvm
lm = load(sys.argv[1])
before = lm.logits([1, 2, 3])
import tvm
assert (lm.logits([1, 2, 3]) == before).all()
assert (load(sys.argv[1]).logits([1, 2, 3]) == before).all()
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libtvm_runtime.so" in line}))
"""
    assert run(code, str(lm_folder), first) == "1"
