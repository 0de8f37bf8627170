"""Text from tokens that arrive one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qcompiler.runtime.text_stream import TextStream

TRICKY = [
    "hello world",
    "  two spaces, and   three",
    " leading space",
    "trailing space ",
    "tab\tand\nnew\n\nlines\r\n",
    "naïve café Ærøskøbing",
    "日本語のテキスト、そして漢字。",
    "한국어 키보드",
    "עברית וערבית العربية",
    "हिन्दी में एक वाक्य",
    "emoji 😀😃 and 👩‍👩‍👧‍👦 and 🇫🇷 and 👍🏽",
    "𝔪𝔞𝔱𝔥 𝟘𝟙𝟚 ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
    "combining: e\u0301 a\u0308\u0304",
    "a real replacement \ufffd character",
    "\ufffd\ufffd\ufffd\ufffd\ufffd",
    "zero\u200bwidth\u200djoiner",
    "don't 'quote' \"me\" .",
    "x" * 50,
]


def sentencepiece() -> Tokenizer:
    """Words begin with ▁, unknown characters fall back to bytes, as in Llama's tokenizers."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    made.train_from_iterator(["hello world, the cat sat on the mat"] * 4, trainer)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Training knows no other way to get byte tokens than as special ones, which they are not.
    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 3]
    return Tokenizer.from_str(json.dumps(data))


def byte_level() -> Tokenizer:
    """Tokens are runs of bytes, as in GPT-2's tokenizer, here few and short ones."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    made.train_from_iterator(["hello world 日本 日本語 😀😃"] * 4, trainer)
    return made


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


@pytest.fixture(params=TOKENIZERS)
def tokens(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


def decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), *, cut: bool = False
) -> list[str]:
    text = TextStream(decoder(tokenizer), prompt)
    return [*(text.push(token) for token in ids), text.finish(cut=cut)]


@pytest.mark.parametrize("text", TRICKY)
def test_pieces_make_the_text(tokens: Tokenizer, text: str) -> None:
    ids = tokens.encode(text, add_special_tokens=False).ids
    pieces = stream(tokens, ids)
    assert "".join(pieces) == tokens.decode(ids) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert len([piece for piece in pieces if piece]) > len(text) / 20


@given(text=st.text(min_size=1, max_size=40), name=st.sampled_from(sorted(TOKENIZERS)))
def test_pieces_make_any_text(text: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("text", TRICKY)
def test_continuing_a_prompt_keeps_the_space_between(tokens: Tokenizer, text: str) -> None:
    prompt = tokens.encode("the cat", add_special_tokens=False).ids
    # Sentencepiece puts a space before whatever it is given, and drops it when decoding.
    between = "" if tokens is TOKENIZERS["sentencepiece"] else " "
    ids = tokens.encode(between + text, add_special_tokens=False).ids
    assert "".join(stream(tokens, ids, prompt)) == f" {text}"


@given(ids=st.lists(st.integers(1, 290), max_size=60))
def test_any_bytes_make_the_text_of_all_tokens(ids: list[int]) -> None:
    """A model may write bytes that are no UTF-8; what comes out is what decoding at once gives."""
    tokenizer = TOKENIZERS["byte-level"]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(ids=st.lists(st.integers(3 + 0x80, 3 + 0xFF) | st.sampled_from(range(259, 290))))
def test_words_between_any_bytes_survive(ids: list[int]) -> None:
    """Decoding at once makes replacements of a whole run of bytes for one bad byte in it."""
    tokenizer = TOKENIZERS["sentencepiece"]
    texts = ("".join(stream(tokenizer, ids)), tokenizer.decode(ids))
    streamed, whole = ("".join(c for c in text if c.isascii()) for text in texts)
    assert streamed == whole


def test_characters_come_out_when_they_are_whole() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer.token_to_id(token) for token in "ðŁĺĢ"]  # the four bytes of 😀
    assert stream(tokenizer, ids) == ["", "", "", "😀", ""]


def test_end_of_one_character_with_the_beginning_of_the_next() -> None:
    """Tokens need not respect characters at all."""
    parts = {1: b"a\xe2", 2: b"\x82\xac\xe2", 3: b"\x82\xac", 4: b"\xe2\x82"}
    text = TextStream(lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"))
    assert [text.push(i) for i in (1, 2, 3, 4)] == ["a", "€", "€", ""]
    assert text.finish(cut=True) == ""


def test_a_character_that_is_cut_in_two_is_left_out() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer.token_to_id(token) for token in "aðŁĺ"]
    assert stream(tokenizer, ids, cut=True) == ["a", "", "", "", ""]
    assert stream(tokenizer, ids, cut=False) == ["a", "", "", "", "\ufffd"]


def test_complete_characters_in_a_run_of_bytes_are_not_taken_back() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "€€".encode()]
    assert stream(tokenizer, ids) == ["", "", "€", "", "", "€", ""]


def test_special_tokens_are_silent() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    end = tokenizer.token_to_id("<|end|>")
    hello = tokenizer.encode("hello").ids
    assert "".join(stream(tokenizer, [end, *hello, end, *hello, end])) == "hellohello"


def test_special_token_before_a_word_does_not_swallow_its_space() -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    end = tokenizer.token_to_id("</s>")
    hello, world = tokenizer.encode("hello").ids, tokenizer.encode("world").ids
    assert "".join(stream(tokenizer, [*hello, end, *world])) == "hello world"


def test_work_for_a_token_does_not_grow() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return str(tokenizer.decode(ids))

    text = TextStream(decode, range(1, 200))
    for token in tokenizer.encode("hello 日本語 😀 " * 100).ids:
        text.push(token)
    assert longest < 20
