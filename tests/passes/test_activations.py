"""Values between two parts of a graph come back bit for bit, from memory and from files."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from passes.activations import Activations, Values

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Bytes of any value, seen as any type: every bit pattern is a value that may come."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        flat = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
        return flat.to(torch.bool).reshape(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


names = st.text(min_size=1, max_size=8)
numbers = st.integers(-(2**70), 2**70)
samples = st.lists(st.dictionaries(names, tensors() | numbers, max_size=4), max_size=5)


def same(one: Values, other: Values) -> bool:
    return list(one) == list(other) and all(map(equal, one.values(), other.values()))


def equal(one: torch.Tensor | int, other: torch.Tensor | int) -> bool:
    if isinstance(one, int) or isinstance(other, int):
        return type(one) is type(other) and one == other
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(*as_bytes)


@given(samples, st.sampled_from([None, 0, 16, 64]))
def test_what_is_put_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, given_samples: list[Values], budget: int | None
) -> None:
    place = tmp_path_factory.mktemp("activations")
    with Activations(given_samples, budget=budget, scratch=place) as kept:
        assert len(kept) == len(given_samples)
        assert all(map(same, kept, given_samples))
        kept.save(place / "saved")
    loaded = Activations.load(place / "saved", budget=budget, scratch=place)
    assert all(map(same, loaded, given_samples))


def sample(size: int = 100, start: int = 0) -> Values:
    return {"x": torch.arange(start, start + size, dtype=torch.float32), "s": size}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_memory_is_bounded(tmp_path: Path) -> None:
    kept = Activations((sample(start=i) for i in range(10)), budget=1000, scratch=tmp_path)
    assert kept.memory_bytes == 800
    assert len(files(tmp_path)) == 8
    for index, values in enumerate(kept):
        kept[index] = {"x": values["x"] + 1, "s": 5}
    assert kept.memory_bytes == 800
    assert len(files(tmp_path)) == 8, "files of replaced samples are deleted"
    assert all(same(v, {**sample(start=i + 1), "s": 5}) for i, v in enumerate(kept))


def test_without_a_budget_nothing_is_written(tmp_path: Path) -> None:
    kept = Activations([sample()], scratch=tmp_path)
    assert kept.memory_bytes == 400
    assert not list(tmp_path.iterdir())


def test_room_that_comes_free_is_used(tmp_path: Path) -> None:
    kept = Activations([sample(200), sample(200)], budget=1000, scratch=tmp_path)
    kept[0] = sample(10)
    kept[1] = sample(200, start=7)
    assert kept.memory_bytes == 840
    assert not files(tmp_path)


def test_a_view_does_not_keep_what_it_looks_into(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    kept = Activations([{"a": whole[:10], "b": whole[5:10], "t": whole.view(10, 100).t()}])
    read = kept[0]
    assert torch.equal(read["t"], whole.view(10, 100).t())
    assert sum(value.untyped_storage().nbytes() for value in read.values()) == 40 + 20 + 4000


@pytest.mark.parametrize("budget", [None, 0])
def test_the_layout_is_the_same_in_memory_and_in_files(tmp_path: Path, budget: int | None) -> None:
    odd = torch.frombuffer(bytearray(4 * 33), dtype=torch.float32)[1:]
    given = {"a": torch.rand(6, 7).t(), "odd": odd}
    (read,) = Activations([given], budget=budget, scratch=tmp_path)
    for value in read.values():
        assert value.is_contiguous()
        assert value.data_ptr() % 64 == 0


@pytest.mark.parametrize("end", ["close", "with", "collected"])
def test_files_go_with_the_object(tmp_path: Path, end: str) -> None:
    kept = Activations([sample()], budget=0, scratch=tmp_path)
    assert files(tmp_path)
    if end == "close":
        kept.close()
        kept.close()
    elif end == "with":
        with kept:
            pass
    else:
        del kept
        gc.collect()
    assert not list(tmp_path.iterdir())


def test_stores_do_not_share_files(tmp_path: Path) -> None:
    one = Activations([sample(start=1)], budget=0, scratch=tmp_path)
    with Activations([sample(start=2)], budget=0, scratch=tmp_path) as other:
        assert same(one[0], sample(start=1))
        assert same(other[0], sample(start=2))
    assert same(one[0], sample(start=1))


def test_slices_and_places_from_the_end(tmp_path: Path) -> None:
    kept = Activations((sample(start=i) for i in range(4)), budget=900, scratch=tmp_path)
    assert same(kept[-1], sample(start=3))
    assert all(map(same, kept[1:3], [sample(start=1), sample(start=2)]))
    with pytest.raises(IndexError):
        kept[4]


def test_only_tensors_and_whole_numbers() -> None:
    with pytest.raises(TypeError, match="x is float"):
        Activations([{"x": 1.5}])  # type: ignore[dict-item]


def test_what_is_loaded_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    Activations(sample(start=i) for i in range(3)).save(tmp_path / "saved")
    loaded = Activations.load(tmp_path / "saved", budget=450, scratch=tmp_path)
    assert loaded.memory_bytes == 0
    for index, values in enumerate(loaded):
        loaded[index] = {"x": values["x"] * 2, "s": 1}
    assert loaded.memory_bytes == 400
    assert len(files(tmp_path / "saved")) == 4, "what was saved stays as it was"
    again = Activations.load(tmp_path / "saved")
    assert all(same(values, sample(start=i)) for i, values in enumerate(again))


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Activations(sample(start=i) for i in range(3))
    write = Path.write_bytes
    written: list[Path] = []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 2:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        kept.save(tmp_path / "saved")
    assert caught.value.filename == str(written[1])
    assert not list(tmp_path.iterdir())


def test_saving_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        Activations([sample()]).save(tmp_path / "saved")


def test_what_was_saved_outlives_the_files_it_came_from(tmp_path: Path) -> None:
    kept = Activations([sample(start=3)], budget=0, scratch=tmp_path)
    kept.save(tmp_path / "saved")
    kept[0] = sample(start=9)
    kept.close()
    assert same(Activations.load(tmp_path / "saved")[0], sample(start=3))


@pytest.mark.parametrize("damage", ["no folder", "no list", "a file lacks", "a file is cut"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    saved = tmp_path / "saved"
    if damage != "no folder":
        Activations([sample(), sample()]).save(saved)
        last = sorted(saved.glob("*.safetensors"))[-1]
    if damage == "no list":
        (saved / "samples.json").unlink()
    elif damage == "a file lacks":
        last.unlink()
    elif damage == "a file is cut":
        last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match="holds no whole set of activations"):
        Activations.load(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_temporaries_between_samples_leave_no_holes() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    kept = Activations()
    size = 1 << 20
    for index in range(64):
        temporary = [torch.full((size,), float(index)) for _ in range(3)]
        kept.append({"x": temporary[1][: size // 2].clone()})
    assert kept.memory_bytes == 64 * size * 2
    assert resident() - before < kept.memory_bytes + (100 << 20)
