"""Models that are damaged, incomplete or for another machine, through the C interface."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from tests.runner_program import Driver, RunnerError, needs_cmake

pytestmark = [pytest.mark.tvm, pytest.mark.timeout(600), needs_cmake]
ByPipeline = Callable[[str], Path]


def copied(exported: ByPipeline, folder: Path) -> Path:
    shutil.copytree(exported("w4a8") / "model", folder / "model")
    return folder / "model"


def refused(driver: Driver, model: Path, sentence: str, **options: bool) -> None:
    with pytest.raises(RunnerError, match=sentence):
        driver.load(model, **options)


def changed_facts(model: Path, old: str, new: str) -> None:
    """Change a line and what the file says of itself."""
    text = (model / "runner.txt").read_text()
    assert old in text
    body = text[: text.rindex("sha256 ")].replace(old, new)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (model / "runner.txt").write_text(f"{body}sha256 {digest}\n")


def test_weights_that_were_cut_off(driver: Driver, exported: ByPipeline, tmp_path: Path) -> None:
    model = copied(exported, tmp_path)
    with (model / "weights.safetensors").open("r+b") as file:
        size = file.seek(0, 2)
        file.truncate(size - 1)
    sentence = f"weights.safetensors is damaged: it has {size - 1} bytes in place of {size}; copy"
    refused(driver, model, sentence)
    refused(driver, model, sentence, mapped=True)


def test_weights_that_were_changed(driver: Driver, exported: ByPipeline, tmp_path: Path) -> None:
    model = copied(exported, tmp_path)
    driver.load(model, verify=True)
    driver.free()
    with (model / "weights.safetensors").open("r+b") as file:
        file.seek(-10, 2)
        byte = file.read(1)
        file.seek(-10, 2)
        file.write(bytes([byte[0] ^ 1]))
    refused(driver, model, "weights.safetensors is damaged: its content does not", verify=True)


@pytest.mark.parametrize("name", ["runner.txt", "model.so", "tokenizer.bin"])
def test_files_that_were_changed(
    name: str, driver: Driver, exported: ByPipeline, tmp_path: Path
) -> None:
    model = copied(exported, tmp_path)
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    refused(driver, model, f"{name} is damaged: its content does not match its sha256; copy it")


@pytest.mark.parametrize("name", ["model.so", "tokenizer.bin", "weights.safetensors"])
def test_files_that_are_missing(
    name: str, driver: Driver, exported: ByPipeline, tmp_path: Path
) -> None:
    model = copied(exported, tmp_path)
    (model / name).unlink()
    refused(driver, model, f"{name} is missing; export the runner again")


def test_folders_that_are_no_model(
    driver: Driver, compiled: ByPipeline, exported: ByPipeline, tmp_path: Path
) -> None:
    refused(driver, tmp_path / "nothing", "there is no .*nothing; give the folder 'model' of an")
    refused(driver, tmp_path, "is no exported model: it has no runner.txt; give the folder")
    refused(driver, compiled("float"), "but what 'qcompiler compile' wrote; export it with")
    model = copied(exported, tmp_path)
    (model / "runner.txt").write_text("")
    refused(driver, model, "runner.txt is damaged: it begins otherwise")
    (model / "runner.txt").write_text("qcompiler-runner 1\nname x\n")
    refused(driver, model, "runner.txt is damaged: its content does not match its sha256")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "\narch x86_64\n",
            "\narch sparc64\n",
            r"\(sparc64\), and this machine is x86_64;",
        ),
        ("\narch ", "\nfeature sse9\narch ", "and this machine lacks sse9; compile the model for"),
        ("qcompiler-runner 1", "qcompiler-runner 2", "has version 2, and this runner reads up to"),
        ("\ntvm 0", "\ntvm 9", "was compiled with TVM 9.* build the runner that was exported with"),
        ("\nvocab_size", "\nvocabulary", "is damaged: it has a line 'vocabulary 256'; copy it"),
        ("\nvocab_size 256", "\nvocab_size many", "is damaged: it has a line 'vocab_size many'"),
        ("\nvocab_size 256", "", "is damaged: its parts do not fit together"),
        ("decode step decode_step", "decode step gone", "has no function gone; export the runner"),
    ],
)
def test_facts_that_do_not_fit(
    old: str, new: str, sentence: str, driver: Driver, exported: ByPipeline, tmp_path: Path
) -> None:
    model = copied(exported, tmp_path)
    changed_facts(model, old, new)
    with pytest.raises(RunnerError, match=sentence):
        _ = driver.load(model), driver.generate("a")


def test_weights_beyond_their_file(driver: Driver, exported: ByPipeline, tmp_path: Path) -> None:
    model = copied(exported, tmp_path)
    line = next(
        line for line in (model / "runner.txt").read_text().splitlines() if "weight " in line
    )
    word, kind, offset, *rest = line.split()
    changed_facts(model, line, " ".join([word, kind, str(int(offset) + (1 << 30)), *rest]))
    refused(driver, model, "is damaged: its parts do not fit together")


def test_tokenizers_that_do_not_fit(driver: Driver, exported: ByPipeline, tmp_path: Path) -> None:
    """Whatever is cut off or overwritten, numbers stay inside the file; hashes aside."""
    model = copied(exported, tmp_path)
    whole = (model / "tokenizer.bin").read_bytes()
    facts = (model / "runner.txt").read_text()
    random = np.random.default_rng(5)

    def put(data: bytes) -> None:
        (model / "runner.txt").write_text(facts)
        (model / "tokenizer.bin").write_bytes(data)
        line = next(line for line in facts.splitlines() if "file tokenizer.bin" in line)
        digest = hashlib.sha256(data).hexdigest()
        changed_facts(model, line, f"file tokenizer.bin {len(data)} {digest}")

    for end in (0, 8, 16, 20, 40, len(whole) // 2 * 4 // 4, len(whole) - 4):
        put(whole[:end])
        refused(driver, model, r"tokenizer.bin is damaged|tokenizer.bin has version")
    put(whole[:16] + b"\x09" + whole[17:])
    refused(driver, model, "tokenizer.bin has version 9, and this runner reads 1; export")
    for _ in range(40):
        data = bytearray(whole)
        place = int(random.integers(20, len(whole) // 4)) * 4 % len(whole)
        data[place : place + 4] = b"\xff\xff\xff\x7f"
        put(bytes(data))
        # Any number may be one that fits; none may be one that is read outside of the file.
        with contextlib.suppress(RunnerError):
            driver.load(model)
            driver.encode("the cat")
            driver.decode(range(256))
        driver.free()


def test_threads(driver: Driver, exported: ByPipeline) -> None:
    model = exported("float") / "model"
    assert driver.load(model, threads=1)[-1] == "1"
    with pytest.raises(RunnerError, match=r"4097 threads cannot be: this process may use \d+ proc"):
        driver.load(model, slot=1, threads=4097)
