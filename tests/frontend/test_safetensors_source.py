"""Reading safetensors: lazily, in shards, and saying what is wrong with a damaged file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.safetensors_source import INDEX, SINGLE, SafetensorsSource


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3),
        "a.half": torch.randn(4).to(torch.float16),
        "a.brain": torch.randn(2, 2).to(torch.bfloat16),
        "a.ids": torch.arange(3),
    }


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    where = {
        name: f"model-{i + 1:05}-of-00002.safetensors" for i, name in enumerate(tensors) if i < 2
    }
    where |= {name: "model-00002-of-00002.safetensors" for name in list(tensors)[2:]}
    for file in sorted(set(where.values())):
        save_file({n: tensors[n] for n, f in where.items() if f == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors_come_back_exactly(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sharded: bool
) -> None:
    if sharded:
        write_shards(tmp_path, tensors)
    else:
        save_file(tensors, tmp_path / SINGLE)
    source = SafetensorsSource.from_folder(tmp_path)
    assert set(source.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert source.shape(name) == tuple(tensor.shape)
        assert source.dtype(name) == tensor.dtype
        assert torch.equal(source.read(name), tensor)


def test_names_come_in_the_same_order_each_time(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / SINGLE)
    first, second = (list(SafetensorsSource.from_folder(tmp_path).names()) for _ in range(2))
    assert first == second == sorted(tensors)


def test_one_file_of_another_name_will_do(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "weights.safetensors")
    assert set(SafetensorsSource.from_folder(tmp_path).names()) == set(tensors)


def test_the_commonest_type_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / SINGLE)
    assert SafetensorsSource.from_folder(tmp_path).describe() == "safetensors F32"


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_truncated_file_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor], kept: int
) -> None:
    save_file(tensors, tmp_path / SINGLE)
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[:kept])
    with pytest.raises(CaptureError, match=r"model.safetensors is damaged or was not downloaded"):
        SafetensorsSource.from_folder(tmp_path)


def test_a_file_cut_short_after_it_was_opened_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / SINGLE)
    source = SafetensorsSource.from_folder(tmp_path)
    (tmp_path / SINGLE).write_bytes(b"")
    with pytest.raises(CaptureError, match=r"'b.weight' cannot be read from .*model.safetensors"):
        source.read("b.weight")


def test_a_missing_shard_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_shards(tmp_path, tensors)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CaptureError, match=r"lacks 1 of 2 weight files .* model-00002-of-00002"):
        SafetensorsSource.from_folder(tmp_path)


def test_shards_without_an_index_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    write_shards(tmp_path, tensors)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CaptureError, match=f"2 safetensors files but no {INDEX}"):
        SafetensorsSource.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CaptureError, match=rf"{INDEX} is damaged"):
        SafetensorsSource.from_folder(tmp_path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CaptureError, match=r"only as a pickle \(pytorch_model.bin\).*safetensors"):
        SafetensorsSource.from_folder(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=f"holds no weights: there is no {SINGLE}"):
        SafetensorsSource.from_folder(tmp_path)
