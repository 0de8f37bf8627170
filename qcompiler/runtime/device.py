"""Where an artifact's tensors lie: in the processor's memory, or in a GPU's."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qcompiler.core.artifact import TargetFacts
from qcompiler.core.errors import ArtifactError
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.tensors import aligned, from_ffi, to_ffi

CUDA_LIBRARY = "lib/libtvm_runtime_cuda.so"
"""The part of TVM's runtime that drives a GPU, in artifacts that need it."""

_CUDA_RUNTIME = "libcudart.so.13"
_DRIVER = "libcuda.so.1"

# DLPack's device types, and TVM's kinds of allocators. Malloc serves a processor as well as a pool,
# which keeps buffers for every length of prompt it has ever seen; to allocate on a GPU is slow.
_CPU, _CUDA = 1, 2
_MALLOC, _POOL = 1, 2
# TVM's numbers of what may be asked of a device.
_EXISTS, _CAPABILITY = 0, 4


class Device(Protocol):
    """Memory that compiled functions work in."""

    @property
    def machine_arguments(self) -> tuple[int, ...]:
        """What TVM's virtual machine is told: device, its number and allocator, for each device."""

    def upload(self, array: np.ndarray) -> Any:
        """Return a tensor with an array's numbers."""

    def write(self, tensor: Any, array: np.ndarray) -> None:
        """Put an array's numbers into the tensor that `upload` made of it."""

    def download(self, tensor: Any) -> np.ndarray:
        """Return the numbers of a tensor."""


class Processor:
    """The processor's memory: arrays are tensors where they lie, if they are aligned."""

    machine_arguments = (_CPU, 0, _MALLOC)

    def upload(self, array: np.ndarray) -> Any:
        return to_ffi(aligned(array))

    def write(self, tensor: Any, array: np.ndarray) -> None:
        pass  # they are one

    def download(self, tensor: Any) -> np.ndarray:
        return from_ffi(tensor)


class CudaDevice:
    """The first GPU's memory; others are chosen with CUDA_VISIBLE_DEVICES."""

    machine_arguments = (_CUDA, 0, _POOL, _CPU, 0, _MALLOC)

    def __init__(self, capability: int) -> None:
        """Find the GPU; ArtifactError when there is none of that compute capability (80: 8.0)."""
        ask = _function("runtime.GetDeviceAttr")
        if not ask(_CUDA, 0, _EXISTS):
            raise ArtifactError(
                "the artifact is compiled for an NVIDIA GPU, and this machine shows none; run it "
                "where there is one, or compile the model again with the target 'native'"
            )
        found = str(ask(_CUDA, 0, _CAPABILITY))
        major, minor = (int(number) for number in found.split("."))
        if 10 * major + minor < capability:
            needed = f"{capability // 10}.{capability % 10}"
            raise ArtifactError(
                f"the artifact is compiled for GPUs of compute capability {needed} and more, and "
                f"this machine's has {found}; compile the model again for an older one"
            )
        self._where = bindings().device("cuda", 0)
        self._allocate = _function("runtime.TVMTensorAllocWithScope")
        self._read = _function("runtime.TVMTensorCopyToBytes")
        self._write = _function("runtime.TVMTensorCopyFromBytes")

    def upload(self, array: np.ndarray) -> Any:
        kind = bindings().dtype(array.dtype.name)
        tensor = self._allocate(bindings().Shape(array.shape), kind, self._where, None)
        self.write(tensor, array)
        return tensor

    def write(self, tensor: Any, array: np.ndarray) -> None:
        whole = np.ascontiguousarray(array)
        self._write(tensor, ctypes.c_void_p(whole.ctypes.data), whole.nbytes)

    def download(self, tensor: Any) -> np.ndarray:
        array = np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
        self._read(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
        return array


def _function(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = bindings().get_global_func(name)
    return found


def open_device(target: TargetFacts, folder: Path) -> Device:
    """Return the device that an artifact in `folder` is compiled for; TVM's runtime is loaded.

    Raises ArtifactError, in a sentence that says what is lacking.
    """
    if not target.compute_capability:
        return Processor()
    _load_cuda(target, folder / CUDA_LIBRARY)
    return CudaDevice(target.compute_capability)


def _load_cuda(target: TargetFacts, library: Path) -> None:
    """Load the part of TVM's runtime that drives a GPU, once for the process."""
    if bindings().get_global_func("ffi.Module.load_from_bytes.cuda", allow_missing=True):
        return
    try:
        ctypes.CDLL(_DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        raise ArtifactError(
            f"the artifact is compiled for {target.name}, and this machine has no NVIDIA driver "
            f"({_DRIVER}); run it on a machine with a GPU, or compile the model again with the "
            "target 'native'"
        ) from None
    if not any(_loads(path) for path in _runtimes()):
        raise ArtifactError(
            f"an artifact for {target.name} needs {_CUDA_RUNTIME}; install it with "
            "'pip install \"nvidia-cuda-runtime>=13,<14\"'"
        )
    try:
        ctypes.CDLL(os.fspath(library.absolute()), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ArtifactError(f"{library} cannot be loaded ({error})") from None


def _runtimes() -> Iterator[str]:
    """Yield where the CUDA runtime may be: where the loader looks, and in its Python package."""
    yield _CUDA_RUNTIME
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        yield os.fspath(Path(folder) / "cu13" / "lib" / _CUDA_RUNTIME)


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
