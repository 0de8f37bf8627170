"""The machine code of an artifact, loaded and ready to call."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.core.artifact import Manifest, StepFacts, TensorSpec
from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runtime.device import open_device
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.step import Step
from qcompiler.runtime.workers import Workers

LIBRARY = "model.so"
RUNTIME = "lib/libtvm_runtime.so"

_GO_ON = 0  # what a virtual machine is told by whoever watches it

_loaded: dict[str, list[str]] = {}


class Executable:
    """Functions of an artifact together with their weights. One thread calls at a time."""

    def __init__(
        self, folder: Path, manifest: Manifest, weights: dict[str, np.ndarray], workers: Workers
    ) -> None:
        """Load the machine code of the artifact in `folder`, whose files have been verified.

        Raises ArtifactError when the code cannot be loaded or does not fit the manifest.
        """
        self.workers = workers
        self._lock = threading.Lock()
        ffi = bindings()
        _load_runtime(folder / RUNTIME, manifest.files[RUNTIME].sha256)
        self.device = open_device(manifest.target, folder)
        try:
            path = _fresh_path(folder / LIBRARY, manifest.files[LIBRARY].sha256)
            self._library: Any = ffi.load_module(path, keep_module_alive=False)
            machine = self._new_machine()
            self._functions: dict[str, Any] = {}
            self._steps: dict[str, tuple[Any, StepFacts]] = {}
            for name, entry in manifest.functions.items():
                if entry.step is None:
                    self._functions[name] = machine[name]
                else:
                    self._steps[name] = self.function(entry.step.symbol), entry.step
        except (RuntimeError, AttributeError, OSError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ArtifactError(
                f"{folder / LIBRARY} cannot be loaded ({first}); compile the model again"
            ) from None
        self._arrays = [_fitting(weights, spec) for spec in manifest.weights]
        self._weights: Any = ffi.Array([self.device.upload(array) for array in self._arrays])
        if not self._steps:
            self._arrays = []  # only steps take addresses; a GPU has copies

    def _new_machine(self) -> Any:
        machine = self._library["vm_load_executable"]()
        machine["vm_initialization"](*self.device.machine_arguments)
        return machine

    def function(self, symbol: str) -> Any:
        """Return a function of the library that takes no weights, by its symbol."""
        return self._library.get_function(symbol, query_imports=True)

    @contextmanager
    def watching(self) -> Iterator[list[tuple[str, float]]]:
        """Yield a list that each function adds its name and its seconds to that `call` calls."""
        seen: list[tuple[str, float]] = []
        began: list[float] = []

        def watch(_: Any, name: str, before: bool, *_rest: Any) -> int:
            now = time.perf_counter()
            if before:
                began.append(time.perf_counter())
            else:
                seen.append((name, now - began.pop()))
            return _GO_ON

        # A machine that has been told to call this could not be told to stop.
        machine = self._new_machine()
        machine["set_instrument"](bindings().convert(watch))
        plain = self._functions
        self._functions = {name: machine[name] for name in plain}
        try:
            yield seen
        finally:
            self._functions = plain

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function on tensors, and tuples of them as ffi arrays; its weights are added."""
        with self._lock:
            self._check_open()
            self.workers.prepare()
            return self._functions[name](*arguments, self._weights)

    def step(self, name: str, tensors: Sequence[np.ndarray]) -> Step | None:
        """Return a function that runs as a whole, with inputs and outputs of its own.

        None if the artifact has it kernel by kernel, for `call`.
        """
        found = self._steps.get(name)
        if found is None:
            return None
        return Step(*found, tensors, self._arrays, self.workers.count)

    def run(self, step: Step) -> None:
        """Run a step that `step` returned."""
        with self._lock:
            self._check_open()
            step(self.workers.prepare())

    def _check_open(self) -> None:
        if self._weights is None:
            raise UsageError("the model has been closed; load it again")

    def close(self) -> None:
        """Free the weights and the code."""
        with self._lock:
            self._weights = None
            self._arrays = []
            self._functions = {}
            self._steps = {}
            self._library = None


def _load_runtime(library: Path, sha256: str) -> None:
    """Load TVM's runtime library, once for the process.

    Two copies of it in one process would abort the process. So one that is loaded already, by the
    compiler or another artifact, is used if it is the same, and so is the compiler's copy where the
    compiler is installed and may be imported later.
    """
    if bindings().get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        if sha256 not in map(_hash, _mapped(library.name)):
            raise ArtifactError(
                "this process runs another version of TVM than the artifact is compiled with; "
                "load the artifact in a process of its own, or compile the model again"
            )
        return
    wheel = importlib.util.find_spec("tvm")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        twin = Path(folder) / "lib" / library.name
        if twin.is_file() and _hash(twin) == sha256:
            library = twin
    try:
        ctypes.CDLL(os.fspath(library.absolute()), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactError(
            f"{library} cannot be loaded ({error}); compile the model again, or install the "
            "version of apache-tvm-ffi that its manifest names"
        ) from None


def _mapped(name: str) -> set[Path]:
    """Return the files of that name that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = (Path(line.split(maxsplit=5)[-1]) for line in lines if line.endswith(name))
    return {path for path in paths if path.is_file()}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fresh_path(library: Path, sha256: str) -> str:
    """Return a path to a library that this process has not loaded other code by.

    The dynamic loader knows a library by its path, and would run the old code of an artifact that
    was compiled again into the same folder; as many './' as there were versions tell them apart.
    """
    versions = _loaded.setdefault(os.fspath(library.absolute()), [])
    if sha256 not in versions:
        versions.append(sha256)
    return f"{library.parent.absolute()}/{'./' * versions.index(sha256)}{library.name}"


def _fitting(weights: dict[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
    """Return the weight that `spec` asks for; ArtifactError when the file has none such."""
    array = weights.get(spec.name)
    if array is None or (array.dtype.name, array.shape) != (spec.dtype, spec.shape):
        found = "no such tensor" if array is None else f"{array.dtype.name} {list(array.shape)}"
        raise ArtifactError(
            f"the artifact's weights do not fit its manifest: {spec.name} should be "
            f"{spec.dtype} {list(spec.shape)}, but there is {found}; compile the model again"
        )
    return array
