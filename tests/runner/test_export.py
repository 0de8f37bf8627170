"""The runner's folder: what is in it, and when it is not written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from qcompiler import cli
from qcompiler.core.artifact import read_manifest, read_weights, spec_bytes
from qcompiler.core.errors import ArtifactError, UsageError
from qcompiler.runner import libraries
from qcompiler.runner.export import export_runner
from qcompiler.runner.facts import encode_facts
from qcompiler.runner.libraries import libraries_for, machine_of

pytestmark = pytest.mark.tvm
ByPipeline = Callable[[str], Path]


def test_the_folder(exported: ByPipeline) -> None:
    folder = exported("float")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("CMakeLists.txt", "README.md", "include", "lib", "main.cc", "model", "src"),
        "third_party",
    ]
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        *("model.so", "runner.txt", "tokenizer.bin", "weights.safetensors"),
    ]
    assert (folder / "third_party" / "LICENSE").read_text().count("Apache License")
    assert (folder / "third_party" / "tvm" / "ffi" / "c_api.h").is_file()
    assert '#define QC_TVM_VERSION "0.' in (folder / "src" / "version.h").read_text()
    assert {path.name for path in (folder / "lib").iterdir()} == {
        *("libtvm_ffi.so", "libtvm_runtime.so"),
    }


def test_the_same_artifact_gives_the_same_bytes(
    exported: ByPipeline, compiled: ByPipeline, tmp_path: Path
) -> None:
    export_runner(compiled("float"), tmp_path / "again")
    for path in sorted(exported("float").rglob("*")):
        twin = tmp_path / "again" / path.relative_to(exported("float"))
        assert path.is_dir() or path.read_bytes() == twin.read_bytes()


def test_places_of_weights(exported: ByPipeline, compiled: ByPipeline) -> None:
    manifest = read_manifest(compiled("w4a8"))
    file = compiled("w4a8") / "weights.safetensors"
    data, weights = file.read_bytes(), read_weights(file)
    lines = [
        line.split()
        for line in (exported("w4a8") / "model" / "runner.txt").read_text().splitlines()
        if line.startswith("weight ")
    ]
    assert [line[-1] for line in lines] == [spec.name for spec in manifest.weights]
    for line, spec in zip(lines, manifest.weights, strict=True):
        offset = int(line[2])
        assert offset % 64 == 0
        assert line[1] == spec.dtype
        assert data[offset : offset + spec_bytes(spec)] == weights[spec.name].tobytes()


def test_exporting_again_keeps_what_was_built(
    compiled: ByPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runner"
    command = ["export", str(compiled("float")), "--runner", "-o", str(folder)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    (folder / "build").mkdir()
    (folder / "build" / "kept").touch()
    (folder / "src" / "old.cc").touch()
    assert cli.main(command) == 0
    assert (folder / "build" / "kept").is_file()
    assert not (folder / "src" / "old.cc").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["runner"]


def test_places_that_are_not_written_to(compiled: ByPipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    (tmp_path / "file").touch()
    for place, sentence in (
        ("mine", "mine holds something other than a runner, which is not overwritten; choose"),
        ("file", "file is a file; choose another place for the runner"),
        ("no/where", "there is no folder .*no for where to be written in"),
    ):
        with pytest.raises(UsageError, match=sentence):
            export_runner(compiled("float"), tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_what_cannot_be_exported(compiled: ByPipeline, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.qc"
    shutil.copytree(compiled("float"), damaged)
    (damaged / "model.so").write_bytes(b"\x7fELF")
    with pytest.raises(ArtifactError, match=r"model.so is damaged"):
        export_runner(damaged, tmp_path / "runner")
    assert cli.main(["export", str(damaged), "-o", str(tmp_path / "x")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.qc"]


def test_weights_that_do_not_fit_their_manifest(compiled: ByPipeline) -> None:
    manifest = read_manifest(compiled("float"))
    other = compiled("w4a8") / "weights.safetensors"
    with pytest.raises(ArtifactError, match="the artifact's weights do not fit its manifest: "):
        encode_facts(manifest, other, {}, "no chat", None)


# -- libraries of other machines -------------------------------------------------------------------


def elf(path: Path, machine: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little"))
    return path


@pytest.fixture
def for_arm(compiled: ByPipeline, tmp_path: Path) -> Path:
    """An artifact whose manifest and library say that it is for aarch64."""
    folder = tmp_path / "arm.qc"
    shutil.copytree(compiled("float"), folder)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"arch": "x86_64"', '"arch": "aarch64"'))
    elf(folder / "lib" / "libtvm_runtime.so", 183)
    return folder


def test_libraries_of_another_machine_are_found(
    for_arm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(for_arm)
    fetched = elf(tmp_path / "libtvm_ffi.so", 183)
    monkeypatch.setattr(libraries, "ffi_library", {"aarch64": fetched}.get)
    assert libraries_for(for_arm, manifest, None)["libtvm_ffi.so"] == fetched
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(UsageError, match=r"there is no libtvm_ffi.so in .*given; name the folder"):
        libraries_for(for_arm, manifest, given)
    elf(given / "libtvm_ffi.so", 62)
    with pytest.raises(UsageError, match="are for x86_64, and the artifact is for aarch64; give"):
        libraries_for(for_arm, manifest, given)
    ours = elf(given / "libtvm_ffi.so", 183)
    found = libraries_for(for_arm, manifest, given)
    assert found["libtvm_ffi.so"] == ours
    assert machine_of(found["libtvm_runtime.so"]) == "aarch64"
    # An artifact may bring it along.
    beside = elf(for_arm / "lib" / "libtvm_ffi.so", 183)
    assert libraries_for(for_arm, manifest, None)["libtvm_ffi.so"] == beside
    assert machine_of(for_arm / "manifest.json") == "no machine"
