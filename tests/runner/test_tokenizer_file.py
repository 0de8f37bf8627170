"""The runner's tokens and texts are those of the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

pytest.importorskip("tvm")

from qcompiler.core.artifact import read_manifest
from qcompiler.core.errors import UnsupportedError
from qcompiler.runner.export import write_model
from qcompiler.runner.tokenizer_file import encode_tokenizer
from tests.runner_program import Driver, needs_cmake
from tests.tokenizer_zoo import TOKENIZERS, pages

pytestmark = [pytest.mark.tvm, pytest.mark.timeout(600), needs_cmake]

TEXTS = (
    "Hello, world! It's 12345.678 o'clock; isn't it? We'LL see, I'd SAY. TheſS KELVIN K",
    "  leading and   many    spaces \n\n\n and\tlines\r\n\r\n \n x  ",
    "naïve café — “quoted” … 你好，世界。こんにちは カタカナ 한국어 조합",
    "Привет Privet עברית العربية हिन्दी ไทย",
    "e\u0301 A\u030a\u0323 \u1100\u1161\u11a8 q\u0307\u0323 \u0958 \u2126 \ufb01 \uf900 \u0344",
    "😀👩\u200d👩\u200d👧‍👦 🏳️‍🌈 \u0000\u0001\x7f\x85\xa0\u2003\u3000\ufeff x",
    "Ⅷ ² ½ ٣٤ ৪ 𝟘𝟙 𝕒𝒷 Ǆǅǆ ʰ ⁿ №",
    "<|begin|>system\n<|end|> <|left|> x  <|left|><|right|>   y [both]  z[plain]",
    "<s></s> [x y]\n\n\n <s> x",
    "the,the;them there#here##now 12 34 aeiou queue</s>  <s>",
    "▁▁ x ▁y <0x41> <0xZZ> <unk> Ġ Ċ",
    "",
    " ",
    "\n",
)


@cache
def library(name: str) -> Tokenizer:
    return TOKENIZERS[name]()


@pytest.fixture(scope="module")
def running(
    sanitized: Path, compiled: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Driver]]:
    """A runner that has a tokenizer in place of its model's."""
    artifact = compiled("float")
    manifest = read_manifest(artifact)
    folder = tmp_path_factory.mktemp("models")
    drivers: dict[str, Driver] = {}

    def run(name: str) -> Driver:
        if name not in drivers:
            write_model(folder / name, artifact, manifest, library(name), "no chat")
            drivers[name] = Driver(sanitized / "driver")
            drivers[name].load(folder / name)
        return drivers[name]

    yield run
    for driver in drivers.values():
        driver.close()


def check(driver: Driver, tokenizer: Tokenizer, text: str) -> None:
    """Compare both ways; texts of C have no zeros."""
    text = text.replace("\0", "")
    expected = tokenizer.encode(text).ids
    assert driver.encode(text) == expected
    assert driver.decode(expected) == tokenizer.decode(expected)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_of_texts(name: str, running: Callable[[str], Driver]) -> None:
    driver, tokenizer = running(name), library(name)
    for text in (*TEXTS, *pages()):
        check(driver, tokenizer, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_of_any_tokens(name: str, running: Callable[[str], Driver]) -> None:
    driver, tokenizer = running(name), library(name)
    size = tokenizer.get_vocab_size()

    @settings(max_examples=60)
    @given(st.lists(st.integers(0, size + 3), max_size=20))
    def compare(tokens: list[int]) -> None:
        assert driver.decode(tokens) == tokenizer.decode(tokens)

    compare()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_of_any_text(name: str, running: Callable[[str], Driver]) -> None:
    driver, tokenizer = running(name), library(name)
    marks = st.sampled_from(
        (
            *("'s", "'LL", " ", "  ", "\n", "\r\n", "12", "the", "<|left|>", "[both]", "[x y]"),
            *("▁", "<s>", "e\u0301\u0323", "\u1100\u1161\u11a8", "ſ", "\u212a", "#", ",", "aei"),
        )
    )
    words = st.lists(marks | st.text(max_size=6), max_size=12)

    @settings(max_examples=150)
    @given(words)
    def compare(parts: list[str]) -> None:
        check(driver, tokenizer, "".join(parts))

    compare()


def test_text_that_is_no_unicode_is_refused(running: Callable[[str], Driver]) -> None:
    for wrong in (b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"):
        with pytest.raises(Exception, match="is not valid Unicode; write it in UTF-8"):
            running("gpt2").encode(wrong)


def plain(**parts: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [
        (Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1})), "model is WordPiece"),
        (Tokenizer(models.Unigram([("a", 0.0)])), "model is Unigram"),
        (Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)), "model is BPE with dropout"),
        (
            Tokenizer(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
            "model is BPE with end_of_word_suffix",
        ),
        (plain(normalizer=normalizers.Lowercase()), "normalizer is Lowercase"),
        (plain(normalizer=normalizers.NFKC()), "normalizer is NFKC"),
        (plain(pre_tokenizer=pre_tokenizers.Whitespace()), "pre-tokenizer is Whitespace"),
        (plain(decoder=decoders.WordPiece()), "decoder is WordPiece"),
    ],
)
def test_what_the_runner_does_not_know_is_named(tokenizer: Tokenizer, named: str) -> None:
    with pytest.raises(UnsupportedError, match=f"the tokenizer's {named}, which the runner"):
        encode_tokenizer(tokenizer)
