"""The same model compiled twice gives the same bytes, times apart, whatever else differs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from qcompiler.core.artifact import UNLISTED
from tests.families import tiny_model

ROOT = Path(__file__).parent.parent


@pytest.mark.tvm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rebuild_is_byte_identical(tmp_path: Path) -> None:
    """Two processes at once, with other hash seeds, folders, clocks and process numbers."""
    model = tmp_path / "model"
    tiny_model("llama").save_pretrained(model)
    Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(model / "tokenizer.json"))
    folders = [tmp_path / f"seed-{seed}" / f"out-{seed}" for seed in ("1", "77")]
    with ExitStack() as running:
        children = [running.enter_context(compiling(model, folder)) for folder in folders]
        for child in children:
            _, err = child.communicate()
            assert child.returncode == 0, err
    first, second = (
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in folders
    )
    assert len(first) >= 6
    assert first.keys() == second.keys()
    assert {name for name in first if first[name] != second[name]} <= UNLISTED


@contextmanager
def compiling(model: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Compile in a process of its own, which ends with the test; the folder's name is its seed."""
    folder.parent.mkdir()
    seed = folder.name.removeprefix("out-")
    with subprocess.Popen(
        [sys.executable, "-m", "qcompiler.cli", "compile", str(model), "-o", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder.parent)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()
