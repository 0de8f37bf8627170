"""Text that a model writes: the tokens it is calibrated on, in words, a paragraph each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models

import qcompiler
from qcompiler import text_generation
from qcompiler.calibration import build_calibration
from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.core.program import Program
from qcompiler.frontend import capture
from qcompiler.self_generated import generate_tokens
from qcompiler.text_generation import GeneratedText
from tests.families import save_tiny_llama, tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="module")
def program(model: Path) -> Program:
    return capture(model)


def test_it_is_what_the_model_is_calibrated_on(model: Path, program: Program) -> None:
    found = qcompiler.generate_text(model, samples=3, sequence_length=20, seed=4)
    assert found.seconds is not None
    assert found.tokens_per_s == 60 / found.seconds
    assert len(found.texts) == 3
    expected = generate_tokens(program, samples=3, sequence_length=20, seed=4)
    assert torch.equal(found.tokens, expected)
    again = qcompiler.generate_text(model, samples=3, sequence_length=20, seed=4)
    assert torch.equal(again.tokens, expected)
    assert (again.texts, again.seconds, again.tokens_per_s) == (found.texts, None, None)
    warmer = qcompiler.generate_text(model, samples=3, sequence_length=20, seed=4, temperature=2.0)
    assert not torch.equal(warmer.tokens, expected)


def test_a_file_of_it_can_be_calibrated_on(model: Path, program: Program, tmp_path: Path) -> None:
    found = qcompiler.generate_text(model, samples=12)
    assert found.tokens.shape == (12, 128)  # the model's context
    file = found.save(tmp_path / "own.txt")
    paragraphs = file.read_bytes().decode()[:-1].split("\n\n")
    assert paragraphs == [text for text in found.texts if text]
    calibration = build_calibration(program, file, samples=4, sequence_length=64)
    assert len(calibration) == 4


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([7, 1, 2], "one two"),
        ([1, 6, 2, 2, 6], "one\ntwo two"),  # a text that ends, and another
        ([6, 6, 3, 3, 6], ""),
        ([1, 3, 3, 3, 2], "one\n two"),  # no empty lines in a paragraph
        ([4, 1, 3], "one"),  # a byte that no text file has
    ],
)
def test_a_sample_is_one_paragraph(tokens: list[int], text: str) -> None:
    words = {"zero": 0, " one": 1, " two": 2, "\n": 3, "\0": 4, "five": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="zero"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<end>"), AddedToken("<begin>")])
    assert text_generation._text(tokenizer, tokens, (6,)) == text


def test_samples_without_words_are_left_out_of_the_file(tmp_path: Path) -> None:
    found = GeneratedText(tokens=torch.zeros(3, 2), texts=("a\nb", "", "c"), seconds=None)
    assert found.save(tmp_path / "a.txt").read_text() == "a\nb\n\nc\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 0}, "samples is 0; give a whole number from 1"),
        ({"samples": 2.0}, "samples is 2.0; give a whole number from 1"),
        ({"sequence_length": 1}, "sequence_length is 1; give a whole number from 2"),
        ({"sequence_length": 129}, "samples of 129 tokens do not fit .* which holds 128"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
        ({"temperature": 0}, "temperature is 0; give a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; give a number above 0"),
    ],
)
def test_numbers_that_cannot_be(model: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        qcompiler.generate_text(model, **options)


def test_models_that_write_no_text() -> None:
    linear = torch.export.export(torch.nn.Linear(4, 4), (torch.zeros(1, 4),))
    with pytest.raises(UsageError, match="is no language model; only those write text"):
        qcompiler.generate_text(linear)
    with pytest.raises(QCompilerError, match="has no tokenizer"):
        qcompiler.generate_text(tiny_model("llama"))
