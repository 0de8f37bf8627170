"""Reading GGUF: every stored type as the gguf package reads it, and damage told in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.core.errors import CaptureError
from qcompiler.frontend.gguf_file import GgufFile

QUANTIZABLE = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.BF16]
RAW = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS]


def write(path: Path, kinds: list[Kind]) -> None:
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_string("general.name", "tiny ßmall")
    writer.add_array("llama.list", [1, 2, 3])
    writer.add_array("tokenizer.ggml.tokens", ["a", "bé", ""])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_float32("llama.rope.freq_base", 5.0)
    for kind in kinds:
        if kind in (Kind.F32, Kind.F16, Kind.I32):
            kind_name = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.I32: np.int32}[kind]
            writer.add_tensor(
                kind.name, (100 * generator.standard_normal((3, 5))).astype(kind_name)
            )
        elif kind in QUANTIZABLE:
            values = generator.standard_normal((6, 64)).astype(np.float32)
            writer.add_tensor(kind.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            _, size = gguf.GGML_QUANT_SIZES[kind]
            codes = generator.integers(0, 60, (4, 2 * size), dtype=np.uint8)
            writer.add_tensor(kind.name, codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "tiny.gguf", [Kind.F32, Kind.F16, Kind.I32, *QUANTIZABLE, *RAW])
    return tmp_path / "tiny.gguf"


def test_tensors_are_those_the_gguf_package_reads(path: Path) -> None:
    file = GgufFile(path)
    theirs = gguf.GGUFReader(path).tensors
    assert list(file.names()) == [t.name for t in theirs]
    for tensor in theirs:
        if tensor.tensor_type is Kind.I32:
            expected = torch.from_numpy(tensor.data.copy())
        else:
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        found = file.read(tensor.name)
        assert torch.equal(found.to(torch.float64), expected.to(torch.float64))
        assert tuple(found.shape) == file.shape(tensor.name)
        assert found.dtype == file.dtype(tensor.name)


def test_metadata_of_every_kind(path: Path) -> None:
    file = GgufFile(path)
    assert file.architecture == "llama"
    assert file.metadata["general.name"] == "tiny ßmall"
    assert file.metadata["llama.context_length"] == 128
    assert file.metadata["llama.list"] == [1, 2, 3]
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "bé", ""]
    assert file.metadata["tokenizer.ggml.add_bos_token"] is False
    assert file.metadata["llama.rope.freq_base"] == 5.0


def test_the_commonest_type_is_named(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", [Kind.Q4_1, Kind.F32])
    assert GgufFile(tmp_path / "tiny.gguf").describe() == "GGUF Q4_1"


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CaptureError, match="does not begin with the letters GGUF"):
        GgufFile(tmp_path / "x.gguf")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(CaptureError, match=r"x\.gguf cannot be read as GGUF"):
        GgufFile(tmp_path / "x.gguf")


def test_another_version_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4] = 9
    path.write_bytes(data)
    with pytest.raises(CaptureError, match="is of version 9"):
        GgufFile(path)


def test_missing_data_are_named(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 64])
    with pytest.raises(CaptureError, match=r"'IQ4_XS' reach beyond the end of the file"):
        GgufFile(path)


def test_data_that_vanish_after_opening_are_noticed(path: Path) -> None:
    file = GgufFile(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CaptureError, match="cut short since it was opened"):
        file.read("IQ4_XS")


def test_a_header_cut_anywhere_is_refused(path: Path) -> None:
    data = path.read_bytes()
    for length in range(4, 1200, 7):
        path.write_bytes(data[:length])
        with pytest.raises(CaptureError, match=r"tiny\.gguf"):
            GgufFile(path)


@given(st.integers(0, 1150), st.integers(0, 255))
def test_a_changed_byte_never_makes_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "tiny.gguf"
    write(path, [Kind.F32, Kind.Q4_0])
    data = bytearray(path.read_bytes())
    data[min(place, len(data) - 1)] = byte
    path.write_bytes(data)
    try:
        file = GgufFile(path)
    except CaptureError as error:
        message = str(error)
    else:
        message = str(path)
        for name in file.names():
            assert tuple(file.read(name).shape) == file.shape(name)
    assert re.search(r"tiny\.gguf", message)
    assert "\n" not in message


def test_a_type_that_cannot_be_turned_to_floats_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("odd", np.zeros((2, 40), dtype=np.uint8), raw_dtype=Kind.Q8_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CaptureError, match="'odd' is stored as Q8_1, which cannot be turned"):
        GgufFile(tmp_path / "x.gguf")
