"""The weights of a model by name: read one at a time when asked for, written to a second store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch

from qcompiler.core.formats import TensorFormat
from qcompiler.core.qtensor import QuantizedTensor

Weight = torch.Tensor | QuantizedTensor


class WeightSource(Protocol):
    """Where tensors come from. Describing one must not read it, and reading must not keep it."""

    def names(self) -> Iterable[str]:
        """Yield every tensor's name, in an order that is the same each time."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype `read` gives, without reading."""

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, in the dtype it is stored in."""


class TensorSource:
    """Tensors that are in memory already, such as a module's state dict."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def names(self) -> Iterable[str]:
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[name]


class WeightStore:
    """Names and their tensors: what sources hold, under what has been written over it.

    A tied weight is one entry; its other names are aliases, which read and write that entry. Names
    come in the order of the sources, then in the order they were first written.

    >>> store = WeightStore([TensorSource({"table.weight": torch.zeros(3, 2)})])
    >>> store.alias("head.weight", "table.weight")
    >>> store.put("head.weight", torch.ones(3, 2))
    >>> list(store), store.get("table.weight").sum().item()
    (['table.weight'], 6.0)
    """

    def __init__(self, sources: Iterable[WeightSource] = ()) -> None:
        # Where each entry is to be found; None marks one that was written.
        self._places: dict[str, WeightSource | None] = {}
        self._written: dict[str, Weight] = {}
        self._aliases: dict[str, str] = {}
        for source in sources:
            for name in source.names():
                self._places.setdefault(name, source)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._aliases

    @property
    def aliases(self) -> Mapping[str, str]:
        """Second names of tied weights, each with the name of its entry."""
        return dict(self._aliases)

    def resolve(self, name: str) -> str:
        """Return the name of the entry that `name` means, itself or what it is an alias of.

        Raises:
            KeyError: there is no such name.
        """
        entry = self._aliases.get(name, name)
        if entry not in self._places:
            raise KeyError(f"no weight is named '{name}'")
        return entry

    def get(self, name: str) -> Weight:
        """Read a weight: float32 if it is a floating tensor, else as stored; nothing is kept."""
        entry = self.resolve(name)
        source = self._places[entry]
        weight = self._written[entry] if source is None else source.read(entry)
        if isinstance(weight, QuantizedTensor) or not weight.is_floating_point():
            return weight
        return weight.to(torch.float32)

    def tensor(self, name: str) -> torch.Tensor:
        """Read a weight that is not quantised.

        Raises:
            TypeError: the weight is quantised.
        """
        weight = self.get(name)
        if isinstance(weight, QuantizedTensor):
            raise TypeError(f"'{name}' is quantised")
        return weight

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a weight's shape without reading it."""
        entry = self.resolve(name)
        source = self._places[entry]
        return tuple(self._written[entry].shape) if source is None else source.shape(entry)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of what `get` returns (of its codes when it is quantised)."""
        entry = self.resolve(name)
        source = self._places[entry]
        if source is not None:
            stored = source.dtype(entry)
        else:
            written = self._written[entry]
            if isinstance(written, QuantizedTensor):
                return written.codes.dtype
            stored = written.dtype
        return torch.float32 if stored.is_floating_point else stored

    def format(self, name: str) -> TensorFormat | None:
        """Return a quantised weight's format, None for a float one, without reading."""
        written = self._written.get(self.resolve(name))
        return written.format if isinstance(written, QuantizedTensor) else None

    def put(self, name: str, weight: Weight) -> None:
        """Write a weight, new or over the one there is; what the sources hold does not change."""
        entry = self._aliases.get(name, name)
        self._places[entry] = None
        self._written[entry] = weight

    def place(self, name: str, source: WeightSource) -> None:
        """Have a weight, new or over the one there is, read from `source` by its entry's name."""
        entry = self._aliases.get(name, name)
        self._places[entry] = source
        self._written.pop(entry, None)

    def alias(self, name: str, entry: str) -> None:
        """Make `name` a second name of `entry`, in place of any tensor of its own.

        Raises:
            KeyError: there is no such entry.
        """
        entry = self.resolve(entry)
        if name == entry:
            return
        self.remove(name)
        self._aliases[name] = entry

    def remove(self, name: str) -> None:
        """Forget a name if it is there: an alias alone, an entry with all its aliases."""
        if self._aliases.pop(name, None) is not None:
            return
        self._places.pop(name, None)
        self._written.pop(name, None)
        for other in [a for a, entry in self._aliases.items() if entry == name]:
            del self._aliases[other]

    def copy(self) -> WeightStore:
        """Return a store that shares the tensors but can be written to on its own."""
        twin = WeightStore()
        twin._places = dict(self._places)
        twin._written = dict(self._written)
        twin._aliases = dict(self._aliases)
        return twin
