"""A compiled module that is no language model: arrays in, arrays out."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from qcompiler.core.artifact import Manifest, TensorSpec
from qcompiler.core.errors import UsageError
from qcompiler.runtime.executable import Executable
from qcompiler.runtime.tensors import aligned


class CompiledModule:
    """A module that `load` returned; call it with arrays.

    A `with` statement, or `close`, frees the weights.
    """

    def __init__(self, manifest: Manifest, executable: Executable) -> None:
        self.manifest = manifest
        self._executable = executable
        self._forward = manifest.functions["forward"]

    def __repr__(self) -> str:
        inputs = ", ".join(f"{s.name} {s.dtype} {_text(s)}" for s in self.inputs)
        return f"<CompiledModule {self.name} for {self.manifest.target.name}, takes {inputs}>"

    def __enter__(self) -> CompiledModule:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights; the module cannot be used any more."""
        self._executable.close()

    @property
    def name(self) -> str:
        return self.manifest.model.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call takes; sizes given by a name may be any, but the same everywhere."""
        return self._forward.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a call returns."""
        return self._forward.outputs

    @property
    def threads(self) -> int:
        return self._executable.workers.count

    def __call__(self, *args: ArrayLike, **named: ArrayLike) -> np.ndarray | tuple[np.ndarray, ...]:
        """Run the module on its inputs, in order or by name; one output comes without a tuple.

        Raises UsageError for inputs that are missing, unknown, or of another dtype or shape.
        """
        sizes: dict[str, int] = {}
        device = self._executable.device
        arrays = [self._checked(a, s, sizes) for a, s in self._bound(args, named)]
        result = self._executable.call("forward", *(device.upload(array) for array in arrays))
        tensors = [result] if hasattr(result, "__dlpack__") else result
        outputs = tuple(device.download(tensor) for tensor in tensors)
        return outputs[0] if len(outputs) == 1 else outputs

    def _bound(
        self, args: tuple[ArrayLike, ...], named: dict[str, ArrayLike]
    ) -> list[tuple[ArrayLike, TensorSpec]]:
        """Pair what was passed with what the module takes."""
        names = [spec.name for spec in self.inputs]
        takes = f"{self.name} takes {', '.join(names)}"
        if len(args) > len(names):
            raise UsageError(f"{takes}, but {len(args)} inputs were given")
        given = dict(zip(names, args, strict=False))
        for name, value in named.items():
            if name not in names:
                raise UsageError(f"there is no input '{name}': {takes}")
            if name in given:
                raise UsageError(f"the input '{name}' was given twice")
            given[name] = value
        missing = [name for name in names if name not in given]
        if missing:
            raise UsageError(f"{takes}, but {' and '.join(missing)} was not given")
        return [(given[spec.name], spec) for spec in self.inputs]

    def _checked(self, value: ArrayLike, spec: TensorSpec, sizes: dict[str, int]) -> np.ndarray:
        """Return an input as an aligned array; `sizes` collects the sizes that have names."""
        # Numbers in a list have no dtype to be wrong about; an array's is never changed silently.
        array = np.asarray(value, spec.dtype if isinstance(value, list) else None)
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(
                f"the input '{spec.name}' is {array.dtype}, and {self.name} takes {spec.dtype}; "
                f"convert it with .astype('{spec.dtype}')"
            )
        fits = array.ndim == len(spec.shape) and all(
            size == sizes.setdefault(want, size) if isinstance(want, str) else size == want
            for size, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            known = "".join(f", {name} being {size}" for name, size in sizes.items())
            raise UsageError(
                f"the input '{spec.name}' has the shape {list(array.shape)}, and {self.name} takes "
                f"{_text(spec)}{known}"
            )
        for want in spec.shape:
            low, high = self._forward.bounds.get(str(want), (1, None))
            size = sizes.get(str(want), low)
            if size < low or (high is not None and size > high):
                limit = f"at least {low}" if high is None else f"{low} to {high}"
                raise UsageError(
                    f"the input '{spec.name}' has {want} = {size}, and {self.name} takes {limit}"
                )
        rows = self._forward.rows.get(spec.name)
        if rows is not None and array.size and not 0 <= array.min() <= array.max() < rows:
            # Kernels would read beyond the table.
            raise UsageError(
                f"the input '{spec.name}' holds {_outside(array)}, and {self.name} takes "
                f"numbers from 0 to {rows - 1} there"
            )
        return aligned(array)


def _outside(array: np.ndarray) -> int:
    """Return an index that no table has, or else the largest."""
    low = int(array.min())
    return low if low < 0 else int(array.max())


def _text(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"
