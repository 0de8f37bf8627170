"""A tiny language model, exported, and its runner built with sanitizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.families import save_tiny_llama
from tests.runner_program import Driver, build


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Compile a tiny Llama that reads bytes with a pipeline, once for each."""
    import qcompiler

    folder = tmp_path_factory.mktemp("compiled")
    source = save_tiny_llama(folder / "tiny")

    def compile_with(pipeline: str) -> Path:
        artifact = folder / f"{pipeline}.qc"
        if not artifact.exists():
            qcompiler.compile(source, output=artifact, pipeline=pipeline)
        return artifact

    return compile_with


@pytest.fixture(scope="session")
def exported(
    compiled: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Export the tiny model compiled with a pipeline; return the runner's folder."""
    from qcompiler.runner.export import export_runner

    folder = tmp_path_factory.mktemp("exported")

    def export(pipeline: str) -> Path:
        if not (folder / pipeline).exists():
            export_runner(compiled(pipeline), folder / pipeline)
        return folder / pipeline

    return export


@pytest.fixture(scope="session")
def sanitized(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the runner and its driver with the address and undefined behaviour sanitizers."""
    base = tmp_path_factory.getbasetemp()
    return build(exported("float"), base, "-DQC_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")


@pytest.fixture
def driver(sanitized: Path) -> Iterator[Driver]:
    """A process that calls the C interface; ends without a leak."""
    process = Driver(sanitized / "driver")
    yield process
    process.close()
