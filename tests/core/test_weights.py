"""The weight store: lazy, tied, written over without changing what it was made from."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from qcompiler.core.formats import PerGroup, TensorFormat
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.weights import TensorSource, WeightStore


class Counted:
    """A source that remembers what was read."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.reads: list[str] = []

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.tensors[name]


@pytest.fixture
def quantized() -> QuantizedTensor:
    form = TensorFormat(bits=4, granularity=PerGroup(32))
    codes = torch.randint(-8, 8, (3, 64), dtype=torch.int8)
    return QuantizedTensor(codes, torch.rand(3, 2).to(torch.float16), None, form)


def test_describing_weights_reads_none() -> None:
    source = Counted(b=torch.ones(2, 3, dtype=torch.bfloat16), a=torch.arange(4))
    store = WeightStore([source])
    assert list(store) == ["b", "a"]
    assert len(store) == 2
    assert store.shape("b") == (2, 3)
    assert (store.dtype("b"), store.dtype("a")) == (torch.float32, torch.int64)
    assert source.reads == []


def test_every_get_reads_again_so_that_nothing_is_kept() -> None:
    source = Counted(a=torch.ones(2))
    store = WeightStore([source])
    store.get("a")
    store.get("a")
    assert source.reads == ["a", "a"]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_float32_whatever_they_are_stored_as(stored: torch.dtype) -> None:
    store = WeightStore([Counted(a=torch.full((2,), 1.5, dtype=stored))])
    assert store.tensor("a").dtype == store.dtype("a") == torch.float32
    assert store.tensor("a").tolist() == [1.5, 1.5]


def test_integers_stay_as_they_are() -> None:
    store = WeightStore([Counted(a=torch.tensor([True, False]), b=torch.arange(3))])
    assert store.tensor("a").dtype == torch.bool
    assert store.tensor("b").dtype == torch.int64


def test_the_first_source_with_a_name_has_it() -> None:
    store = WeightStore([Counted(a=torch.zeros(1)), Counted(b=torch.ones(1), a=torch.ones(2))])
    assert list(store) == ["a", "b"]
    assert store.shape("a") == (1,)


def test_what_is_put_takes_the_place_of_what_was_stored() -> None:
    source = Counted(a=torch.zeros(2), b=torch.zeros(3))
    store = WeightStore([source])
    store.put("c", torch.ones(4, dtype=torch.float16))
    store.put("a", torch.ones(5))
    assert list(store) == ["a", "b", "c"]
    assert store.shape("a") == (5,)
    assert store.tensor("c").dtype == torch.float32
    assert source.tensors["a"].tolist() == [0, 0]


def test_a_source_can_take_the_place_of_what_was_put() -> None:
    store = WeightStore([Counted(a=torch.zeros(2))])
    store.put("a", torch.ones(3))
    store.place("a", Counted(a=torch.ones(4)))
    assert store.shape("a") == (4,)


def test_quantized_weights_come_back_as_they_were_put(quantized: QuantizedTensor) -> None:
    store = WeightStore([Counted(a=torch.zeros(3, 64))])
    assert store.format("a") is None
    store.put("a", quantized)
    assert store.get("a") is quantized
    assert store.shape("a") == (3, 64)
    assert store.dtype("a") == torch.int8
    assert store.format("a") == quantized.format
    with pytest.raises(TypeError, match="'a' is quantised"):
        store.tensor("a")


def test_an_alias_reads_and_writes_the_entry() -> None:
    store = WeightStore([Counted(table=torch.zeros(2, 2), head=torch.ones(1))])
    store.alias("head", "table")
    assert list(store) == ["table"]
    assert store.resolve("head") == "table"
    assert store.aliases == {"head": "table"}
    assert "head" in store
    store.put("head", torch.ones(2, 2))
    assert store.tensor("table").sum() == 4
    store.alias("third", "head")
    assert store.aliases["third"] == "table"


def test_removing_an_alias_keeps_the_entry_and_the_other_way_round_does_not() -> None:
    store = WeightStore([Counted(table=torch.zeros(2))])
    store.alias("head", "table")
    store.alias("other", "table")
    store.remove("other")
    assert "table" in store
    assert "other" not in store
    store.remove("table")
    assert "head" not in store
    assert len(store) == 0
    store.remove("table")


def test_an_unknown_name_is_a_key_error() -> None:
    store = WeightStore()
    for ask in (store.get, store.shape, store.dtype, store.resolve):
        with pytest.raises(KeyError, match="no weight is named 'x'"):
            ask("x")
    with pytest.raises(KeyError, match="no weight is named 'x'"):
        store.alias("y", "x")


def test_a_copy_goes_its_own_way() -> None:
    store = WeightStore([Counted(a=torch.zeros(1), b=torch.zeros(1))])
    store.alias("c", "a")
    twin = store.copy()
    twin.put("a", torch.ones(1))
    twin.remove("b")
    twin.remove("c")
    assert store.tensor("a").item() == 0
    assert "b" in store
    assert "c" in store


def test_tensors_in_memory_are_a_source() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    source = TensorSource({"a": parameter})
    assert list(source.names()) == ["a"]
    assert source.shape("a") == (2, 3)
    assert source.dtype("a") == torch.float32
    assert not source.read("a").requires_grad
    assert source.read("a").data_ptr() == parameter.data_ptr()
