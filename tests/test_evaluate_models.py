"""Models and pipelines held against each other, from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

import qcompiler
from qcompiler.core.errors import CaptureError, UsageError
from tests.families import tiny_model

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
TEXTS = {"one": "the quick brown fox. " * 9, "two": "pack my box with jugs. " * 5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate(LETTERS)}
    Tokenizer(models.BPE(vocab=letters, merges=[])).save(str(folder / "tokenizer.json"))
    return folder


def test_a_pipeline_is_held_against_the_float_model(saved: Path) -> None:
    found = qcompiler.evaluate(saved, text=TEXTS, reference=saved, pipeline="w4a8", window=32)
    assert list(found.texts) == ["one", "two"]
    assert found.tokens == sum(each.tokens for each in found.texts.values())
    assert found.comparison is not None
    assert found.kl is not None
    assert found.kl > 1e-6
    alone = qcompiler.evaluate(
        saved, text=TEXTS["one"], reference=saved, pipeline="w4a8", window=32
    )
    assert alone == found.texts["one"]
    assert alone.texts == {}


def test_two_pipelines_are_held_against_each_other(saved: Path) -> None:
    """The reference is the same model where none is named."""
    text = TEXTS["one"]
    found = qcompiler.evaluate(
        saved, text=text, pipeline="w8a8", reference_pipeline="w4a8", tokens=100, window=32
    )
    other = qcompiler.evaluate(saved, text=text, pipeline="w4a8", tokens=100, window=32)
    assert found.comparison is not None
    assert found.comparison.reference_nll == pytest.approx(other.nll)
    own = qcompiler.evaluate(
        saved, text=text, pipeline="w4a8", reference_pipeline="w4a8", tokens=100, window=32
    )
    assert own.kl == pytest.approx(0, abs=1e-7)
    assert own.comparison is not None
    assert own.comparison.verdict == "within noise"


def test_mistakes_are_found_before_anything_is_loaded(saved: Path) -> None:
    with pytest.raises(qcompiler.ConfigError, match="unknown pipeline 'w4a9'"):
        qcompiler.evaluate(saved, text="a text", reference_pipeline="w4a9")
    with pytest.raises(CaptureError, match="there is no file or folder"):
        qcompiler.evaluate(saved, text="a text", reference="no/such")
    with pytest.raises(UsageError, match="a window of 4096 tokens does not fit"):
        qcompiler.evaluate(saved, text="a text", window=4096)
