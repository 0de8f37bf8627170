"""The values between two parts of a graph, for every calibration sample: in memory or in files."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import overload

import safetensors
import safetensors.torch
import torch

Values = dict[str, torch.Tensor | int]
"""Values that are live between two parts of a graph, by name: tensors, and sizes that vary."""

_VALUES = "values"  # where a file's metadata has the names in order, and what is no tensor
_COUNT = "count"
_TRIM = 1 << 26  # bytes kept after which pages that were freed go back to the system
_ALIGNMENT = 64  # bytes; what torch gives every tensor that it makes


class Activations(Sequence[Values]):
    """Values of one sample after the other; what exceeds a budget is kept in files.

    A sample is read and replaced as a whole. What comes back has the same bits whether it was in
    memory or not, and is laid out the same: contiguous, at an address that is aligned, for products
    of floats may round otherwise on other layouts. Tensors that come back are not to be changed.

    budget: bytes that may stay in memory; None: all of them. Files lie in a new folder inside
    `scratch` (the system's folder for temporary files if not given) until `close`, the end of a
    `with` statement, or the end of the object.
    """

    def __init__(
        self,
        samples: Iterable[Values] = (),
        *,
        budget: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._budget = budget
        self._scratch = scratch
        self._folder: Path | None = None
        self._remove: weakref.finalize[..., Activations] | None = None
        self._written = 0
        self._kept_since = 0
        self._samples: list[_Kept | Path] = []
        self.memory_bytes = 0
        """What the samples in memory take."""
        for values in samples:
            self.append(values)

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        files = sum(isinstance(sample, Path) for sample in self._samples)
        return f"<Activations of {len(self)} samples, {files} of them in files>"

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Values: ...
    @overload
    def __getitem__(self, index: slice) -> list[Values]: ...
    def __getitem__(self, index: int | slice) -> Values | list[Values]:
        """Return the values of a sample, in the order in which they were given."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        sample = self._samples[index]
        return _read(sample) if isinstance(sample, Path) else dict(sample.values)

    def __setitem__(self, index: int, values: Values) -> None:
        """Replace the values of a sample."""
        self._forget(self._samples[index])
        self._samples[index] = self._keep(owned(values))

    def __iter__(self) -> Iterator[Values]:
        return (self[index] for index in range(len(self)))

    def append(self, values: Values) -> None:
        """Add a sample."""
        self._samples.append(self._keep(owned(values)))

    def close(self) -> None:
        """Forget the samples and delete their files."""
        self._samples.clear()
        self.memory_bytes = 0
        if self._remove is not None:
            self._remove()
        self._folder, self._remove = None, None

    def save(self, folder: Path) -> None:
        """Write all samples to `folder`, which must not exist yet: it appears whole or not at all.

        Raises:
            FileExistsError: there is such a folder.
            OSError: it cannot be written; nothing is left of it.
        """
        if folder.exists():
            raise FileExistsError(f"{folder} exists already")
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for index, sample in enumerate(self._samples):
                file = partial / _file_name(index)
                if isinstance(sample, Path):
                    _link(sample, file)
                else:
                    _write(sample.values, file)
            content = json.dumps({_COUNT: len(self)})
            (partial / "samples.json").write_text(content, encoding="utf-8")
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @classmethod
    def load(
        cls, folder: Path, *, budget: int | None = None, scratch: Path | None = None
    ) -> Activations:
        """Open what `save` wrote: a sample's file is read when the sample is asked for.

        The files stay as they are, and must stay until each sample has been replaced.

        Raises:
            ValueError: the folder is not there, or it is not whole.
        """
        found = cls(budget=budget, scratch=scratch)
        try:
            content = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
            for index in range(content[_COUNT]):
                file = folder / _file_name(index)
                with safetensors.safe_open(file, "pt") as opened:
                    _described(opened.metadata())
                found._samples.append(file)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"{folder} holds no whole set of activations: {error}") from error
        return found

    def _keep(self, values: Values) -> _Kept | Path:
        """Keep a sample in memory if the budget allows it, and in a file otherwise."""
        size = sum(v.nbytes for v in values.values() if isinstance(v, torch.Tensor))
        if self._budget is None or self.memory_bytes + size <= self._budget:
            self.memory_bytes += size
            self._kept_since += size
            if self._kept_since >= _TRIM:
                self._kept_since = 0
                _return_freed_pages()
            return _Kept(values, size)
        if self._folder is None:
            self._folder = Path(
                tempfile.mkdtemp(prefix="qcompiler-activations-", dir=self._scratch)
            )
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        # Never the name of an earlier file, whose values may be in use.
        file = self._folder / _file_name(self._written)
        self._written += 1
        _write(values, file)
        return file

    def _forget(self, sample: _Kept | Path) -> None:
        if isinstance(sample, _Kept):
            self.memory_bytes -= sample.size
        elif sample.parent == self._folder:
            sample.unlink()


@dataclass(frozen=True)
class _Kept:
    """A sample in memory, and what it takes in bytes."""

    values: Values
    size: int


def _return_freed_pages() -> None:
    """Give pages of the heap that are free back to the system, where the C library can.

    glibc before 2.38 hardly ever fills the hole that an aligned block left with another of its
    size. What is kept between temporaries of many samples would make the heap twice as large.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def owned(values: Values) -> Values:
    """Return values whose tensors are contiguous and have their storage to themselves."""
    owned: Values = {}
    seen: set[int] = set()
    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, int):
                raise TypeError(f"{name} is {type(value).__name__}, neither a tensor nor an int")
            owned[name] = value
            continue
        tensor = value.detach()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        if not (alone and tensor.is_contiguous() and storage.data_ptr() % _ALIGNMENT == 0):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _file_name(index: int) -> str:
    return f"{index:06d}.safetensors"


def _write(values: Values, file: Path) -> None:
    """Write a sample, whole or not at all."""
    tensors = {n: v for n, v in values.items() if isinstance(v, torch.Tensor)}
    # Names lie in the metadata, in their order; what the format makes of names is no matter then.
    content = [[n, None if n in tensors else int(v)] for n, v in values.items()]
    data = safetensors.torch.save(
        {str(i): tensors[name] for i, name in enumerate(values) if name in tensors},
        metadata={_VALUES: json.dumps(content)},
    )
    try:
        file.write_bytes(data)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(file)  # a full disk does not say which
        file.unlink(missing_ok=True)
        raise


def _read(file: Path) -> Values:
    with safetensors.safe_open(file, "pt") as opened:
        content = _described(opened.metadata())
        # Copies: what is mapped from a file is aligned to 8 bytes only.
        return {
            name: opened.get_tensor(str(i)).clone() if number is None else number
            for i, (name, number) in enumerate(content)
        }


def _described(metadata: dict[str, str]) -> list[tuple[str, int | None]]:
    """Return a sample's names in order, with the numbers of those that are no tensors."""
    return [(name, number) for name, number in json.loads(metadata[_VALUES])]


def _link(source: Path, file: Path) -> None:
    """Give a file a second name, or copy it where that cannot be."""
    try:
        file.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, file)
