"""Every mistake and mishap through the command line: one sentence, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qcompiler import cli
from tests.families import save_tiny_llama

pytestmark = pytest.mark.tvm

ROOT = Path(__file__).parent.parent
PROGRESS = re.compile(r" *[\w -]+: (\d+\.\d s|\d+ of \d+.*)")
"""A line that says how far the work is."""

Ends = Callable[..., str]
"""Runs a command line, checks how it ends, and returns the sentence it ends with."""


def complaint(stderr: str) -> str:
    """Return the only line of an error output that is no progress."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.fixture
def ends(capfd: pytest.CaptureFixture[str]) -> Ends:
    """Run the command line in this process; see that it fails as a user's mistake does."""

    def run(*arguments: object, status: int = 1) -> str:
        capfd.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == status
        out, err = capfd.readouterr()
        assert out == ""
        line = complaint(err)
        assert line.startswith("error: ")
        return line

    return run


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, by its name there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a tiny Llama that reads bytes."""
    return save_tiny_llama(tmp_path_factory.mktemp("saved") / "tiny-llama")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def compiled(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama's artifact."""
    folder = tmp_path_factory.mktemp("compiled") / "tiny.qc"
    assert cli.main(["compile", str(saved), "-o", str(folder), "--pipeline", "float", "-q"]) == 0
    return folder


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be spoilt or written over."""
    (tmp_path / "place").mkdir()
    return Path(shutil.copytree(compiled, tmp_path / "place" / "tiny.qc"))


def flip(file: Path, place: float = 0.5) -> None:
    """Change one byte, so far into the file."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 0x10
    file.write_bytes(data)


def cut(file: Path, kept: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])


def edit(file: Path, **changes: object) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- models ----------------------------------------------------------------------------------------


def lose_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def keep_a_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def lose_a_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors")


def spoil_a_number(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, model / "model.safetensors")


def lose_a_shard(model: Path) -> None:
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = [f"model-0000{1 + i % 2}-of-00002.safetensors" for i in range(len(names))]
    index = {"weight_map": dict(zip(names, shards, strict=True))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing in it": (lambda m: [f.unlink() for f in m.iterdir()], "it has no config.json"),
    "no weights": (lose_weights, "holds no weights: there is no model.safetensors"),
    "pickled weights": (keep_a_pickle, "only as a pickle"),
    "cut weights": (lambda m: cut(m / "model.safetensors", 0.5), "not downloaded in full"),
    "one byte short": (lambda m: cut(m / "model.safetensors", 0.99999), "not downloaded in full"),
    "no header": (lambda m: cut(m / "model.safetensors", 0), "not downloaded in full"),
    "damaged header": (lambda m: flip(m / "model.safetensors", 0), "is damaged"),
    "no safetensors": (
        lambda m: (m / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        "is damaged or was not downloaded in full",
    ),
    "a tensor missing": (lose_a_tensor, "lacks 1 of the 22 tensors"),
    "not a number": (spoil_a_number, "model.layers.1.mlp.up_proj"),
    "a shard missing": (lose_a_shard, "lacks 1 of 2 weight files"),
    "unknown architecture": (
        lambda m: edit(m / "config.json", model_type="mamba"),
        "'mamba' is not an architecture that can be captured; supported",
    ),
    "code of its own": (
        lambda m: edit(
            m / "config.json", model_type="mine", auto_map={"AutoConfig": "configuration_mine.C"}
        ),
        "'mine' is not an architecture that can be captured",
    ),
    "another size": (lambda m: edit(m / "config.json", vocab_size=512), "do not belong together"),
    "a size that cannot be": (
        lambda m: edit(m / "config.json", num_attention_heads=0),
        "config.json",
    ),
    "a size that is none": (lambda m: edit(m / "config.json", hidden_size="many"), "config.json"),
    "no JSON": (lambda m: cut(m / "config.json", 0.5), "config.json is damaged"),
    "an unsupported operator": (
        lambda m: edit(m / "config.json", hidden_act="mish"),
        "has no kernel",
    ),
    "an unknown activation": (lambda m: edit(m / "config.json", hidden_act="sliu"), "sliu"),
    "a damaged tokenizer": (lambda m: cut(m / "tokenizer.json", 0.5), "tokenizer.json is damaged"),
    "a tokenizer that is no text": (
        lambda m: (m / "tokenizer.json").write_bytes(b"\xff\xfe\0"),
        "tokenizer.json is damaged",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_will_not_do(name: str, model: Path, ends: Ends, tmp_path: Path) -> None:
    spoil, message = FOLDERS[name]
    spoil(model)
    before = contents(tmp_path)
    assert message in ends("compile", model, "-o", tmp_path / "out")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def write_gguf(path: Path, architecture: str) -> None:
    """Write a file with what a tiny Llama says of itself, and one of its tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(256)
    writer.add_tensor("token_embd.weight", np.ones((256, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no GGUF": ("llama", lambda f: f.write_text("a poem"), "does not begin with the letters GGUF"),
    "empty": ("llama", lambda f: f.write_bytes(b""), "cannot be read as GGUF"),
    "cut in the header": ("llama", lambda f: cut(f, 0.003), "its header ends early"),
    "cut in the data": ("llama", lambda f: cut(f, 0.9), "reach beyond the end of the file"),
    "a damaged header": ("llama", lambda f: flip(f, 0.0001), "cannot be read as GGUF"),
    "layers missing": ("llama", lambda f: None, "holds no tensor of the last"),
    "unknown architecture": ("mamba", lambda f: None, "mamba"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_gguf_file_that_will_not_do(name: str, ends: Ends, tmp_path: Path) -> None:
    architecture, spoil, message = FILES[name]
    write_gguf(tmp_path / "tiny.gguf", architecture)
    spoil(tmp_path / "tiny.gguf")
    assert message in ends("compile", tmp_path / "tiny.gguf", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models/llama.gguf", "there is no file or folder models/llama.gguf"),
        ("smolm2-135m", "did you mean 'smollm2-135m'?"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "evaluate"])
def test_a_model_that_is_not_there(
    command: str, name: str, message: str, ends: Ends, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("some text")
    options = {"compile": ["-o", tmp_path / "out"], "evaluate": ["--text", tmp_path / "text"]}
    assert message in ends(command, name, *options[command])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


# -- requests --------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[list[str], int, str]] = {
    "unknown pipeline": (["--pipeline", "w4a16"], 2, "unknown pipeline 'w4a16'"),
    "unknown target": (["--target", "x86-64-v5"], 2, "unknown target 'x86-64-v5'; did you mean"),
    "unknown pass": (["--set", "quantise.bits=4"], 2, "unknown pass 'quantise'"),
    "unknown option of a pass": (
        ["--set", "legalize.widne=true"],
        2,
        "unknown option 'widne'; did you mean 'widen'?",
    ),
    "value of another type": (["--set", "legalize.widen=3"], 2, "legalize"),
    "unknown option": (["--taget", "native"], 2, "No such option: --taget"),
    "a pass that the pipeline lacks": (
        ["--pipeline", "float", "--set", "quantize-rtn.x=1"],
        2,
        "quantize-rtn",
    ),
    "no scheme": (["--set", 'set-bits.rules=[{scheme="int4"}]'], 2, "'int4' is not a scheme"),
    "a group that does not fit": (
        ["--set", 'set-bits.rules=[{scheme="w4a8g12"}]'],
        2,
        "group size 12 is not supported; choose a multiple of 8",
    ),
    "bits that there are not": (["--set", 'set-bits.rules=[{scheme="w9a8"}]'], 2, "9 bits"),
    "a scheme without kernels": (["--set", 'set-bits.rules=[{scheme="w4"}]'], 1, "no kernels for"),
    "codes to be widened": (
        ["--set", 'set-bits.rules=[{scheme="w3a8g32"}]'],
        1,
        "or give legalize the option widen = true",
    ),
    "a context too long": (["--context", "4096"], 2, "its limit is 128"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_request_that_cannot_be_met(name: str, saved: Path, ends: Ends, tmp_path: Path) -> None:
    options, status, message = OPTIONS[name]
    assert message in ends("compile", saved, "-o", tmp_path / "out", *options, status=status)
    assert list(tmp_path.iterdir()) == []


PIPELINES = {
    "[[pass]]\nname = 'legalise'\n": "unknown pass 'legalise'; did you mean 'legalize'?",
    "[[pass]]\nname = 'legalize'\nwidne = true\n": "unknown option 'widne'",
    "[[pass]\n": "mine.toml",
    "": "mine.toml",
    "[[pass]]\nname = 'quantize-rtn'\n[[pass]]\nname = 'legalize'\n": "step 1",
    "[[pass]]\nname = 'canonicalize'\n": "end with 'legalize'",
    "target = 'arm'\n[[pass]]\nname = 'legalize'\n": "unknown target 'arm'",
    "tagret = 'native'\n[[pass]]\nname = 'legalize'\n": "'tagret'",
}


@pytest.mark.parametrize("text", PIPELINES)
def test_a_pipeline_that_cannot_be(text: str, saved: Path, ends: Ends, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    out = tmp_path / "out"
    assert PIPELINES[text] in ends("compile", saved, "-o", out, "--pipeline", file, status=2)
    assert not out.exists()


def test_places_that_cannot_be_written_to(saved: Path, ends: Ends, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").write_text("mine")
    before = contents(tmp_path)
    assert "does not exist" in ends("compile", saved, "-o", tmp_path / "no" / "out")
    assert "is a file" in ends("compile", saved, "-o", tmp_path / "file")
    assert "something other" in ends("compile", saved, "-o", tmp_path / "folder")
    dump = ["--dump", tmp_path / "file"]
    assert "file" in ends("compile", saved, "-o", tmp_path / "out", *dump, status=2)
    assert contents(tmp_path) == before


# -- artifacts -------------------------------------------------------------------------------------

PARTS = ["lib/libtvm_runtime.so", "model.so", "report.json", "tokenizer.json"]
PARTS += ["weights.safetensors"]


def needed(command: str, tmp_path: Path) -> list[object]:
    """Return options without which a command is no use on the tiny artifact."""
    (tmp_path / "text").write_text("some text to read")
    return {
        "bench": ["--prompt-tokens", 8, "--generate-tokens", 8],
        "evaluate": ["--text", tmp_path / "text"],
        "inspect": [],
        "run": ["--prompt", "x"],
    }[command]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "changed": flip,
    "cut": lambda file: cut(file, 0.7),
    "empty": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_artifact(damage: str, part: str, artifact: Path, ends: Ends) -> None:
    DAMAGE[damage](artifact / part)
    line = ends("run", artifact, "--prompt", "x")
    assert str(artifact / part) in line
    assert "copy the artifact again or compile the model again" in line


MANIFESTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda file: cut(file, 0.7), "is damaged"),
    "empty": (lambda file: file.write_bytes(b""), "is damaged"),
    "no text": (lambda file: file.write_bytes(b"\xff\0"), "is damaged"),
    "missing": (Path.unlink, "is no artifact: it has no manifest.json"),
    "newer": (lambda file: edit(file, schema=99), "has schema 99, and this version"),
    "no schema": (lambda file: file.write_text("{}"), "it has no schema number"),
    "a field too many": (lambda file: edit(file, more=1), "the field more is unknown"),
    "a field of another type": (lambda file: edit(file, kernels=[]), "kernels should be an object"),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("command", ["run", "bench", "inspect"])
def test_a_damaged_manifest(
    command: str, name: str, artifact: Path, ends: Ends, tmp_path: Path
) -> None:
    spoil, message = MANIFESTS[name]
    spoil(artifact / "manifest.json")
    assert message in ends(command, artifact, *needed(command, tmp_path))


@pytest.mark.parametrize("command", ["bench", "evaluate"])
def test_a_damaged_artifact_is_not_measured(
    command: str, artifact: Path, ends: Ends, tmp_path: Path
) -> None:
    flip(artifact / "weights.safetensors")
    line = ends(command, artifact, *needed(command, tmp_path))
    assert "weights.safetensors is damaged" in line


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"features": ["avx2", "avx1024"]}, "this machine lacks avx1024"),
        ({"arch": "riscv64"}, "(riscv64), and this machine is"),
    ],
)
@pytest.mark.parametrize("command", ["run", "bench", "evaluate"])
def test_an_artifact_for_another_machine(
    command: str, facts: dict[str, object], message: str, artifact: Path, ends: Ends, tmp_path: Path
) -> None:
    manifest = artifact / "manifest.json"
    edit(manifest, target=json.loads(manifest.read_text())["target"] | facts)
    line = ends(command, artifact, *needed(command, tmp_path))
    assert message in line
    assert "compile the model again on this machine" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "x" * 500], "context"),
        (["--prompt", ""], "prompt"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--top-p", "3"], "top_p"),
        (["--prompt", "x", "--top-k", "0"], "top_k"),
        (["--prompt", "x", "--max-tokens", "-3"], "max_tokens"),
        (["--prompt", "x", "--threads", "4096"], "threads"),
    ],
)
def test_a_prompt_or_setting_that_cannot_be(
    options: list[str], message: str, compiled: Path, ends: Ends
) -> None:
    assert message in ends("run", compiled, *options, status=2)


# -- mishaps ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(compiled: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk that has room for one tiny artifact, not for two."""
    size = sum(file.stat().st_size for file in compiled.rglob("*")) * 3 // 2
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount here")
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(saved: Path, compiled: Path, disk: Path, ends: Ends) -> None:
    existing = disk / "tiny.qc"
    shutil.copytree(compiled, existing)
    before = contents(disk)
    line = ends("compile", saved, "-o", existing, "--pipeline", "float", "--context", 64)
    assert "tiny.qc was not written: the disk is full; free some space" in line
    assert contents(disk) == before
    assert [path.name for path in disk.iterdir()] == ["tiny.qc"]


def test_no_room_for_temporary_files(
    saved: Path, disk: Path, ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    line = ends("compile", saved, "-o", tmp_path / "out.qc", status=2)
    assert re.search(rf"{disk} has \d\.\d MB left for temporary files", line)
    assert "TMPDIR" in line
    assert not (tmp_path / "out.qc").exists()


def test_output_to_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qcompiler.cli", "targets"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert complaint(done.stderr) == "error: No space left on device"


@pytest.mark.parametrize("step", ["capture", "lower"])
def test_ctrl_c_half_way(step: str, saved: Path, artifact: Path, tmp_path: Path) -> None:
    """Interrupted in the passes or while TVM builds; an artifact that is there stays."""
    before = contents(artifact.parent)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = ["-m", "qcompiler.cli", "compile", str(saved), "-o", str(artifact)]
    child = subprocess.Popen(
        [sys.executable, *command, "--pipeline", "float"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with child:
        assert child.stderr is not None
        seen = ""
        for line in child.stderr:
            seen += line
            if line.startswith(f"{step}: "):
                break
        # A terminal sends it to every process of the command, the linker too.
        os.killpg(child.pid, signal.SIGINT)
        out, rest = child.communicate(timeout=120)
    assert child.returncode == 130
    assert out == ""
    assert complaint(seen + rest) == "interrupted"
    assert contents(artifact.parent) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["tiny.qc"]
    assert list(scratch.iterdir()) == []
