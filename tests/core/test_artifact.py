"""The artifact's manifest, weights file and folder: round trips, refusals and atomic writing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import load_file

from qcompiler.core import artifact
from qcompiler.core.artifact import (
    ALIGNMENT,
    CacheSpec,
    EntryFunction,
    KernelChoice,
    Manifest,
    ModelFacts,
    TargetFacts,
    TensorSpec,
    check_destination,
    from_json,
    read_manifest,
    read_weights,
    to_json,
    verify_files,
    write_artifact,
)
from qcompiler.core.errors import ArtifactError

DTYPES = ["bool", "uint8", "int8", "int32", "int64", "float16", "float32"]


def spec(name: str, array: np.ndarray) -> TensorSpec:
    return TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {
        "codes": rng.integers(0, 256, (7, 13), np.uint8),
        "scale": rng.normal(size=(7, 3)).astype(np.float16),
        "norm": rng.normal(size=576).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.int64),
        "strided": rng.normal(size=(8, 6)).astype(np.float32)[::2, ::3],
    }


@pytest.fixture
def manifest(tensors: dict[str, np.ndarray]) -> Manifest:
    ids = TensorSpec(name="ids", dtype="int64", shape=(1, "s"))
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, "r", 100))
    entry = EntryFunction(inputs=(ids,), outputs=(logits,), bounds={"s": (1, None), "r": (1, 8)})
    return Manifest(
        kind="causal-lm",
        compiler="0.1",
        model=ModelFacts(
            name="tiny",
            architecture="llama",
            source="tiny.gguf",
            vocab_size=100,
            max_context=64,
            kv=(CacheSpec(heads=3, head_dim=64),) * 2,
            end_tokens=(2, 0),
            begin_token=1,
            chat_template="{{ 'ä' }}",
            special_tokens={"bos_token": "<s>"},
        ),
        target=TargetFacts(name="x86-64-v3", arch="x86_64", features=("avx2",)),
        pipeline=({"name": "set-bits", "rules": {"*": "w4a8g32"}}, {"name": "legalize"}),
        plan={"layers.0.mlp.up": "w4a8g32"},
        kernels={"layers.0.mlp.up": KernelChoice(kernel="w4a8_vnni", reason="one row")},
        functions={"prefill": entry, "decode": entry},
        weights=tuple(spec(name, array) for name, array in tensors.items()),
        requires={"apache-tvm-ffi": "0.1.15"},
        measured={"sqnr_db": 41.5, "whole": 40.0},
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes | Path]:
    library = tmp_path / "built.so"
    library.write_bytes(os.urandom(3_000_000))
    return {"model.so": library, "lib/runtime.so": b"runtime", "tokenizer.json": b"{}"}


@pytest.fixture
def written(
    tmp_path: Path,
    manifest: Manifest,
    files: dict[str, bytes | Path],
    tensors: dict[str, np.ndarray],
) -> Path:
    folder = tmp_path / "model.qc"
    write_artifact(folder, manifest, files, tensors.items())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# -- manifest --------------------------------------------------------------------------------------


def test_manifest_round_trip(manifest: Manifest) -> None:
    assert from_json(to_json(manifest), "here") == manifest


def test_manifest_text_is_sorted_and_plain(manifest: Manifest) -> None:
    data = json.loads(to_json(manifest))
    assert list(data) == sorted(data)
    assert data["schema"] == artifact.SCHEMA
    assert "ä" in to_json(manifest)


def test_manifest_with_infinity_is_not_written(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(dataclasses.replace(manifest, measured={"sqnr_db": float("inf")}))


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *steps, last = path.split(".")
        for step in steps:
            data = data[step]
        data[last] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("model.vocab_size", "100"), 'model.vocab_size should be int, not "100"'),
        (change("model.vocab_size", True), "model.vocab_size should be int, not true"),
        (change("model.vocab_size", 1.5), "model.vocab_size should be int, not 1.5"),
        (change("model.begin_token", "x"), "model.begin_token should be int or null"),
        (change("model.end_tokens", 2), "model.end_tokens should be a list"),
        (change("model.end_tokens", ["2"]), r"model.end_tokens\[0\] should be int"),
        (change("plan", []), "plan should be an object"),
        (change("plan.x", None), "plan.x should be str, not null"),
        (change("target", 3), "target should be an object"),
        (change("kind", "moe"), "kind should be one of causal-lm, module"),
        (change("functions.decode.bounds.s", [1]), "functions.decode.bounds.s should have 2 items"),
        (change("model.colour", 1), "the field model.colour is unknown"),
        (change("weights", [{"name": "x"}]), r"the field weights\[0\].dtype is missing"),
        (lambda data: data.pop("kind"), "the field kind is missing"),
        (lambda data: data["functions"].pop("decode"), "needs the function 'decode'"),
        (change("model.max_context", 0), "needs a vocabulary and a context size"),
        (lambda data: data["weights"].append(data["weights"][0]), "weights .* the same name"),
        (change("schema", None), "has no schema number"),
        (change("schema", True), "has no schema number"),
    ],
)
def test_wrong_fields_are_named(
    manifest: Manifest, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = json.loads(to_json(manifest))
    edit(data)
    with pytest.raises(ArtifactError, match=message) as caught:
        from_json(json.dumps(data), "m.qc/manifest.json")
    assert str(caught.value).startswith("m.qc/manifest.json ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"schema": 1'])
def test_bad_json_is_damaged(text: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"m.json is damaged \(.*\); copy"):
        from_json(text, "m.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}"])
def test_other_json_is_no_manifest(text: str) -> None:
    with pytest.raises(ArtifactError, match="is no manifest"):
        from_json(text, "m.json")


def test_newer_schema_asks_for_an_upgrade(manifest: Manifest) -> None:
    data = json.loads(to_json(manifest)) | {"schema": 99, "novelty": 1, "compiler": "9.1"}
    with pytest.raises(ArtifactError, match=r"schema 99.* up to 4; upgrade.* by qcompiler 9\.1"):
        from_json(json.dumps(data), "m.json")


# -- weights ---------------------------------------------------------------------------------------


def test_weights_are_aligned_views_of_one_buffer(
    written: Path, tensors: dict[str, np.ndarray]
) -> None:
    read = read_weights(written / "weights.safetensors")
    assert list(read) == list(tensors)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(read[name], expected, strict=True)
        assert read[name].size == 0 or read[name].ctypes.data % ALIGNMENT == 0
        assert read[name].flags.c_contiguous
        assert read[name].flags.writeable
        assert not read[name].flags.owndata


def test_weights_file_is_safetensors(written: Path, tensors: dict[str, np.ndarray]) -> None:
    stored = load_file(written / "weights.safetensors")
    for name, expected in tensors.items():
        np.testing.assert_array_equal(stored[name], expected, strict=True)


@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6
    )
)
def test_weights_round_trip(
    shapes: list[tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = {
        f"t{i}": np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        for i, (dtype, shape) in enumerate(shapes)
    }
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    specs = [spec(name, array) for name, array in arrays.items()]
    path.write_bytes(b"".join(artifact.encode_weights(specs, arrays.items())))
    read = read_weights(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)
        assert read[name].size == 0 or read[name].ctypes.data % ALIGNMENT == 0
    assert load_file(path).keys() >= arrays.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("b", np.zeros(2, np.float32))], r"expected the weight a float32 \[2\], got b"),
        ([("a", np.zeros(2))], "got a float64"),
        ([("a", np.zeros(3, np.float32))], r"got a float32 \[3\]"),
        ([], "got nothing"),
        ([("a", np.zeros(2, np.float32)), ("b", np.zeros(1))], "b is not in the manifest"),
    ],
)
def test_weights_must_fit_the_manifest(given: list[tuple[str, np.ndarray]], message: str) -> None:
    specs = [TensorSpec(name="a", dtype="float32", shape=(2,))]
    with pytest.raises(ValueError, match=message):
        list(artifact.encode_weights(specs, given))


def test_weights_are_asked_for_one_by_one(tmp_path: Path, manifest: Manifest) -> None:
    """A model larger than memory is written without ever being whole in it."""
    specs = tuple(TensorSpec(name=f"w{i}", dtype="uint8", shape=(100,)) for i in range(5))
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(1)

    def produce() -> Iterator[tuple[str, np.ndarray]]:
        for one in specs:
            array = np.zeros(100, np.uint8).view(Counted)
            alive.append(1)
            assert len(alive) <= 2  # the one just written, and this
            yield one.name, array

    write_artifact(tmp_path / "m.qc", dataclasses.replace(manifest, weights=specs), {}, produce())


def damaged(path: Path, edit: Callable[[bytearray], object]) -> Path:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.clear(), "ends too early"),
        (lambda data: data.__delitem__(slice(5, None)), "ends too early"),
        (lambda data: data.__delitem__(slice(20, None)), "ends too early"),
        (lambda data: data.__delitem__(slice(-64, None)), "header cannot be read"),
        (lambda data: data.__setitem__(slice(8, 12), b"oops"), "header cannot be read"),
        (lambda data: data.__setitem__(slice(0, 8), b"\xff" * 8), "ends too early"),
    ],
)
def test_damaged_weights(written: Path, edit: Callable[[bytearray], object], message: str) -> None:
    path = damaged(written / "weights.safetensors", edit)
    with pytest.raises(ArtifactError, match=f"weights.safetensors is damaged: .*{message}"):
        read_weights(path)


def test_weights_of_another_content(written: Path) -> None:
    record = read_manifest(written).files["weights.safetensors"]
    path = written / "weights.safetensors"
    read_weights(path, record)
    damaged(path, lambda data: data.__setitem__(-1, data[-1] ^ 1))
    with pytest.raises(ArtifactError, match="does not match its sha256"):
        read_weights(path, record)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.safetensors is missing"):
        read_weights(tmp_path / "none.safetensors")


# -- reading a folder ------------------------------------------------------------------------------


def test_written_artifact_reads_back(written: Path, manifest: Manifest) -> None:
    read = read_manifest(written)
    verify_files(written, read)
    assert set(read.files) == set(contents(written)) - {"manifest.json"}
    assert read.sizes["weight_bytes"] == sum(artifact.spec_bytes(one) for one in manifest.weights)
    assert dataclasses.replace(read, files={}, sizes={}) == manifest


def test_equal_inputs_give_equal_bytes(
    written: Path,
    tmp_path: Path,
    manifest: Manifest,
    files: dict[str, bytes | Path],
    tensors: dict[str, np.ndarray],
) -> None:
    again = tmp_path / "again.qc"
    write_artifact(again, manifest, dict(reversed(files.items())), tensors.items())
    assert contents(again) == contents(written)


def test_unlisted_files_are_beside_the_promise(
    tmp_path: Path,
    manifest: Manifest,
    files: dict[str, bytes | Path],
    tensors: dict[str, np.ndarray],
) -> None:
    """They see the manifest as it is written, and neither checks nor overwriting mind them."""
    folder = tmp_path / "timed.qc"

    def write(seconds: int) -> dict[str, bytes]:
        seen: list[Manifest] = []

        def unlisted(final: Manifest) -> dict[str, bytes]:
            seen.append(final)
            return {"times.json": b"%d" % seconds, "report.html": b"<html>"}

        listed = write_artifact(folder, manifest, files, tensors.items(), unlisted=unlisted)
        assert seen == [listed]
        assert not artifact.UNLISTED & set(listed.files)
        return {name: data for name, data in contents(folder).items() if name != "times.json"}

    first = write(1)
    assert write(2) == first
    assert contents(folder)["times.json"] == b"2"
    (folder / "report.html").unlink()
    verify_files(folder, read_manifest(folder))


def test_only_some_files_may_be_unlisted(tmp_path: Path, manifest: Manifest) -> None:
    bare = dataclasses.replace(manifest, weights=())
    with pytest.raises(ValueError, match=r"notes\.txt is no file that the manifest may leave out"):
        write_artifact(tmp_path / "a.qc", bare, {}, [], unlisted=lambda _: {"notes.txt": b""})
    with pytest.raises(ValueError, match=r"times\.json is no name for a file"):
        write_artifact(tmp_path / "a.qc", bare, {"times.json": b""}, [])


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no .*nowhere; give the folder"):
        read_manifest(tmp_path / "nowhere")


def test_file_in_place_of_a_folder(written: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.so is a file; give the folder"):
        read_manifest(written / "model.so")


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["model.so", "lib/runtime.so", "weights.safetensors"])
def test_missing_file(written: Path, name: str) -> None:
    (written / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; copy"):
        verify_files(written, read_manifest(written))


def test_truncated_file(written: Path) -> None:
    damaged(written / "model.so", lambda data: data.pop())
    with pytest.raises(ArtifactError, match="it has 2999999 bytes in place of 3000000; copy"):
        verify_files(written, read_manifest(written))


def test_changed_file(written: Path) -> None:
    damaged(written / "model.so", lambda data: data.__setitem__(7, data[7] ^ 255))
    with pytest.raises(ArtifactError, match=r"model\.so is damaged: its content does not match"):
        verify_files(written, read_manifest(written))
    verify_files(written, read_manifest(written), only=["tokenizer.json"])


def test_file_that_the_manifest_does_not_know(written: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not list extra\.so"):
        verify_files(written, read_manifest(written), only=["extra.so"])


# -- writing, whole or not at all ------------------------------------------------------------------


@pytest.fixture
def write(
    manifest: Manifest, files: dict[str, bytes | Path], tensors: dict[str, np.ndarray]
) -> Callable[[Path], Manifest]:
    return lambda folder: write_artifact(folder, manifest, files, tensors.items())


def test_replaces_an_artifact(
    written: Path, manifest: Manifest, tensors: dict[str, np.ndarray]
) -> None:
    write_artifact(written, manifest, {"other.so": b"new"}, tensors.items())
    assert set(contents(written)) == {"manifest.json", "other.so", "weights.safetensors"}
    assert [p.name for p in written.parent.iterdir() if p.name.startswith(".")] == []


def test_fills_an_empty_folder(tmp_path: Path, write: Callable[[Path], Manifest]) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    verify_files(tmp_path / "empty", read_manifest(tmp_path / "empty"))


def test_follows_a_link(written: Path, tmp_path: Path, write: Callable[[Path], Manifest]) -> None:
    link = tmp_path / "link.qc"
    link.symlink_to(written)
    write(link)
    assert link.is_symlink()
    verify_files(written, read_manifest(written))


def test_is_as_readable_as_other_folders(written: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


FAILURES = [
    (full_disk, ArtifactError, "was not written: the disk is full; free some space"),
    (interrupt, KeyboardInterrupt, None),
]


@pytest.mark.parametrize(
    ("call", "number", "existing"),
    [
        ("os.fsync", 1, False),
        ("os.fsync", 4, True),
        ("pathlib.Path.rename", 1, False),
        ("pathlib.Path.rename", 1, True),
        ("pathlib.Path.rename", 2, True),  # the old artifact is aside by then, and must come back
    ],
)
@pytest.mark.parametrize(("failure", "error", "message"), FAILURES)
def test_failure_leaves_everything_as_it_was(
    tmp_path: Path,
    write: Callable[[Path], Manifest],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    existing: bool,
    failure: Callable[..., None],
    error: type[BaseException],
    message: str | None,
) -> None:
    folder = tmp_path / "out" / "model.qc"
    folder.parent.mkdir()
    if existing:
        write(folder)
    before = contents(folder.parent)
    original = {"os.fsync": os.fsync, "pathlib.Path.rename": Path.rename}[call]
    calls = 0

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            failure()
        return original(*arguments)

    monkeypatch.setattr(call, fail)
    with pytest.raises(error, match=message):
        write(folder)
    monkeypatch.undo()
    assert calls >= number
    assert contents(folder.parent) == before
    assert [path.name for path in folder.parent.iterdir()] == (["model.qc"] if existing else [])


@pytest.mark.parametrize(("failure", "error", "message"), FAILURES)
def test_failure_between_two_weights(
    written: Path,
    manifest: Manifest,
    tensors: dict[str, np.ndarray],
    failure: Callable[..., None],
    error: type[BaseException],
    message: str | None,
) -> None:
    def produce() -> Iterator[tuple[str, np.ndarray]]:
        yield next(iter(tensors.items()))
        failure()

    before = contents(written.parent)
    with pytest.raises(error, match=message):
        write_artifact(written, manifest, {}, produce())
    assert contents(written.parent) == before


def test_missing_parent(tmp_path: Path, write: Callable[[Path], Manifest]) -> None:
    with pytest.raises(ArtifactError, match=r"the folder .*nowhere does not exist; make it"):
        write(tmp_path / "nowhere" / "model.qc")


def test_unwritable_parent(
    tmp_path: Path, write: Callable[[Path], Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(ArtifactError, match=r"nothing can be written to .*; choose another place"):
        write(tmp_path / "model.qc")


def test_other_failures_of_the_system(
    tmp_path: Path, write: Callable[[Path], Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.fsync", denied)
    with pytest.raises(ArtifactError, match="was not written: permission denied; choose"):
        write(tmp_path / "model.qc")


def test_refuses_a_file(tmp_path: Path, write: Callable[[Path], Manifest]) -> None:
    (tmp_path / "model.qc").write_text("mine")
    with pytest.raises(ArtifactError, match=r"model\.qc is a file; choose another place"):
        write(tmp_path / "model.qc")


def test_refuses_a_folder_that_is_no_artifact(
    tmp_path: Path, write: Callable[[Path], Manifest]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="holds something other than an artifact"):
        write(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "mine"


def test_refuses_a_folder_whose_manifest_is_not_ours(
    tmp_path: Path, write: Callable[[Path], Manifest]
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(ArtifactError, match=r"cannot be told for an artifact: .* no schema"):
        write(tmp_path / "web")


def test_refuses_to_delete_the_users_own_files(
    written: Path, write: Callable[[Path], Manifest]
) -> None:
    (written / "lib" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"since lib/notes\.txt in it is not part"):
        check_destination(written)
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        write(written)
    assert (written / "lib" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "manifest.json"])
def test_files_stay_inside(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(ValueError, match="no name for a file"):
        write_artifact(tmp_path / "m.qc", manifest, {name: b""}, [])
    assert list(tmp_path.iterdir()) == []
