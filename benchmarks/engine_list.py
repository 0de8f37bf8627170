"""Which engines there are, what each needs, and which of them are there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

WORKERS = Path(__file__).resolve().parent / "engine_workers"

Source = Literal["model", "gguf", "folder"]
"""What an engine begins with: what our compiler takes, a GGUF file, or a Hugging Face folder."""


PINNED = {"OMP_PROC_BIND": "close"}
"""Keeps each of OpenMP's threads on a processor of its own, as torch's tuning guide recommends and
our compiler and OpenVINO do unasked. Without it two threads that wait for each other may share one:
llama.cpp then decodes up to a third more slowly."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """An engine with the variants of a model that it runs.

    modules: what has to be importable. ending: of the names of the files it prepares for itself,
    none if it reads the source as it is. environment: variables of the process it is timed in.
    """

    name: str
    worker: str
    variants: tuple[str, ...]
    source: Source
    modules: tuple[str, ...]
    install: str
    ending: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def option(self) -> str:
        """The option that names the Python which has the engine.

        >>> FAMILIES[1].option
        '--llama-cpp'
        """
        return "--" + self.name.replace(".", "-")

    def is_installed(self, python: str) -> bool:
        """Say whether that interpreter finds all that is needed."""
        asked = (
            f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {self.modules})))"
        )
        command = [python, "-P", "-c", asked]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError as error:
            raise SystemExit(f"{self.option} {python} cannot be run: {error.strerror}") from None
        return not done.returncode


@dataclass(frozen=True)
class Engine:
    """One variant of a family."""

    family: Family
    variant: str

    @property
    def name(self) -> str:
        return f"{self.family.name} {self.variant}"

    @property
    def worker(self) -> Path:
        return WORKERS / self.family.worker


FAMILIES = (
    Family(
        name="qcompiler",
        worker="qcompiler_worker.py",
        variants=("w4a8", "w8a8", "float", "w4a8g128", "w4a8-avx2"),
        source="model",
        modules=("tvm",),
        install="pip install 'qcompiler[compiler]'",
        ending="qc",
    ),
    Family(
        name="llama.cpp",
        worker="llama_cpp_worker.py",
        variants=("q4_0", "q8_0", "f16"),
        source="gguf",
        modules=("llama_cpp",),
        install="pip install llama-cpp-python",
        ending="gguf",
        environment=PINNED,
    ),
    Family(
        name="openvino",
        worker="openvino_worker.py",
        variants=("int4", "int8"),
        source="folder",
        modules=("openvino_genai", "nncf", "optimum"),
        install="pip install openvino-genai nncf optimum-intel",
        ending="openvino",
    ),
    Family(
        name="torch",
        worker="torch_worker.py",
        variants=("float32", "bfloat16", "compiled"),
        source="folder",
        modules=("torch", "transformers"),
        install="pip install 'qcompiler[compiler]'",
        environment=PINNED,
    ),
    Family(
        name="torchao",
        worker="torch_worker.py",
        variants=("int8", "int4"),
        source="folder",
        modules=("torchao", "transformers"),
        install="pip install torchao transformers",
        environment=PINNED,
    ),
)

ENGINES = tuple(Engine(family, variant) for family in FAMILIES for variant in family.variants)


def chosen(globs: str) -> list[Engine]:
    """Return the engines whose names match one of the globs, which commas part.

    >>> [engine.name for engine in chosen("*w4a8,torch float*")]
    ['qcompiler w4a8', 'torch float32']
    """
    found = set()
    for glob in globs.split(","):
        matching = {engine for engine in ENGINES if fnmatch(engine.name, glob.strip())}
        if not matching:
            names = ", ".join(engine.name for engine in ENGINES)
            raise SystemExit(f"no engine is called '{glob.strip()}'; there are: {names}")
        found |= matching
    return [engine for engine in ENGINES if engine in found]


def present(
    engines: Sequence[Engine], pythons: dict[str, str], say: Callable[[str], None]
) -> list[Engine]:
    """Leave out the engines of families that are not installed, and say how to install them.

    pythons: the interpreter of each family, by its name.
    """
    missing = set()
    for family in dict.fromkeys(engine.family for engine in engines):
        if not family.is_installed(pythons[family.name]):
            missing.add(family)
            say(f"{family.name} is left out; install it with: {family.install}")
    return [engine for engine in engines if engine.family not in missing]
