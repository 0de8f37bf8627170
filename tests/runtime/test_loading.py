"""Loading, and refusing to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompiler.core.artifact import TargetFacts
from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runtime import LanguageModel, executable, load
from qcompiler.runtime.machine import this_machine

pytestmark = pytest.mark.tvm
WriteLm = Callable[..., Path]


@pytest.fixture
def copy(lm_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lm_folder, tmp_path / "copy.qc"))


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which machine code would be loaded."""

    def fail(*_: object) -> None:
        raise AssertionError("machine code was loaded")

    monkeypatch.setattr(executable, "bindings", fail)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def edit_manifest(folder: Path, edit: Callable[[dict[str, object]], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_paths_may_be_text(lm_folder: Path) -> None:
    assert load(str(lm_folder)).name == "tiny"


def test_relative_paths(lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lm_folder.parent)
    with load(lm_folder.name) as model:
        assert isinstance(model, LanguageModel)
        assert list(model.generate("the", max_tokens=20))


@pytest.mark.usefixtures("no_code")
def test_no_such_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no"):
        load(tmp_path / "nowhere")


@pytest.mark.usefixtures("no_code")
def test_machine_without_the_instruction_sets(write_lm: WriteLm, tmp_path: Path) -> None:
    target = TargetFacts(name="future", arch=this_machine().arch, features=("avx9000",))
    folder = write_lm(tmp_path / "m.qc", target=target)
    with pytest.raises(ArtifactError, match="for future, and this machine lacks avx9000; compile"):
        load(folder)


@pytest.mark.usefixtures("no_code")
def test_machine_of_another_architecture(write_lm: WriteLm, tmp_path: Path) -> None:
    target = TargetFacts(name="z15", arch="s390", features=())
    with pytest.raises(ArtifactError, match=r"for z15 \(s390\), and this machine is"):
        load(write_lm(tmp_path / "m.qc", target=target))


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("name", ["model.so", "lib/libtvm_runtime.so", "tokenizer.json"])
def test_damaged_file(copy: Path, name: str) -> None:
    spoil(copy / name)
    with pytest.raises(ArtifactError, match=f"{name} is damaged: its content does not match"):
        load(copy)


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("name", ["model.so", "lib/libtvm_runtime.so", "tokenizer.json"])
def test_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; copy the artifact again"):
        load(copy)


def test_damaged_weights(copy: Path) -> None:
    spoil(copy / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is damaged"):
        load(copy)


def test_missing_weights(copy: Path) -> None:
    (copy / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is missing"):
        load(copy)


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("name", ["model.so", "lib/libtvm_runtime.so", "weights.safetensors"])
def test_manifest_that_leaves_a_file_out(copy: Path, name: str) -> None:
    """No file that matters may go unchecked."""
    edit_manifest(copy, lambda data: data["files"].pop(name))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=f"does not list {name}"):
        load(copy)


def test_weights_that_do_not_fit_the_manifest(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["weights"][0].update(dtype="int8"))  # type: ignore[index]
    with pytest.raises(
        ArtifactError, match=r"table should be int8 .*, but there is float32 .*; compile"
    ):
        load(copy)


def test_weight_that_is_not_there(copy: Path) -> None:
    edit_manifest(copy, lambda data: data["weights"][0].update(name="w"))  # type: ignore[index]
    with pytest.raises(ArtifactError, match=r"w should be .*, but there is no such tensor"):
        load(copy)


def test_library_without_the_functions(copy: Path, module_folder: Path) -> None:
    shutil.copy(module_folder / "model.so", copy / "model.so")
    record = json.loads((module_folder / "manifest.json").read_text())["files"]["model.so"]
    edit_manifest(copy, lambda data: data["files"].update({"model.so": record}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"model\.so cannot be loaded \(.*\); compile"):
        load(copy)


def test_library_that_is_none(write_lm: WriteLm, copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())["files"]["tokenizer.json"]
    shutil.copy(copy / "tokenizer.json", copy / "model.so")
    edit_manifest(copy, lambda data: data["files"].update({"model.so": record}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"model\.so cannot be loaded \(.*\); compile"):
        load(copy)


def test_runtime_library_of_another_version(copy: Path, lm_folder: Path) -> None:
    load(lm_folder)  # from here on, this process has a runtime library
    record = json.loads((copy / "manifest.json").read_text())["files"]["tokenizer.json"]
    shutil.copy(copy / "tokenizer.json", copy / "lib" / "libtvm_runtime.so")
    edit_manifest(copy, lambda data: data["files"].update({"lib/libtvm_runtime.so": record}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"another version of TVM than .* process of its own"):
        load(copy)


def test_tokenizer_that_cannot_be_read(copy: Path) -> None:
    record = json.loads((copy / "manifest.json").read_text())["files"]["model.so"]
    shutil.copy(copy / "model.so", copy / "tokenizer.json")
    edit_manifest(copy, lambda data: data["files"].update({"tokenizer.json": record}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read by the installed"):
        load(copy)


def test_impossible_number_of_threads(lm_folder: Path) -> None:
    with pytest.raises(UsageError, match="100000 threads are too many"):
        load(lm_folder, threads=100_000)
    with load(lm_folder, threads=1) as model:
        assert model.threads == 1


def test_limits_of_training_in_the_tokenizer_are_lifted(copy: Path) -> None:
    model = load(copy)
    assert isinstance(model, LanguageModel)
    model._checked_tokenizer.enable_truncation(2)
    model._checked_tokenizer.save(str(copy / "tokenizer.json"))
    edit_manifest(copy, lambda data: data["files"].pop("tokenizer.json"))  # type: ignore[attr-defined]
    from qcompiler.core.artifact import FileRecord, read_manifest
    from qcompiler.runtime.loading import _read_tokenizer

    manifest = read_manifest(copy)
    manifest.files["tokenizer.json"] = FileRecord(sha256="", bytes=0)
    tokenizer = _read_tokenizer(copy, manifest)
    assert tokenizer is not None
    assert len(tokenizer.encode("the cat sat on the mat").ids) > 2


def test_compiled_again_into_the_same_folder(
    module_folder: Path, write_lm: WriteLm, tmp_path: Path, table: np.ndarray
) -> None:
    """The dynamic loader must not hand out the code that was there before."""
    folder = write_lm(tmp_path / "m.qc")
    old = load(folder)
    assert isinstance(old, LanguageModel)
    before = old.logits([1, 2, 3])
    shutil.rmtree(folder)
    shutil.copytree(module_folder, folder)
    assert load(folder).name == "adder"
    shutil.rmtree(folder)
    write_lm(folder)
    new = load(folder)
    assert isinstance(new, LanguageModel)
    np.testing.assert_array_equal(new.logits([1, 2, 3]), before)
    np.testing.assert_array_equal(old.logits([1, 2, 3]), before)
