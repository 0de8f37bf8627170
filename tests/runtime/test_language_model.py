"""Prompts in, text out."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from qcompiler.core.errors import UsageError
from qcompiler.runtime import LanguageModel, load

pytestmark = pytest.mark.tvm
Expected = Callable[[list[int]], np.ndarray]
WriteLm = Callable[..., Path]

TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}<|begin|>"
)


def opened(folder: Path) -> LanguageModel:
    model = load(folder)
    assert isinstance(model, LanguageModel)
    return model


def greedy(expected: Expected, prompt: list[int], count: int) -> list[int]:
    """What the likeliest tokens are, by the definition of the model."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(expected(ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_text(lm: LanguageModel, expected: Expected) -> None:
    prompt = "the cat sat"
    text = lm.generate(prompt, max_tokens=30)
    pieces = list(text)
    assert text.tokens == greedy(expected, lm.encode(prompt), 30)
    whole = lm.decode([*lm.encode(prompt), *text.tokens])
    assert whole.removeprefix(prompt).startswith("".join(pieces))
    assert all(pieces)


def test_counts_and_times(lm: LanguageModel) -> None:
    text = lm.generate("the cat", max_tokens=10)
    assert (text.tokens, text.finish_reason, text.prefill_s) == ([], None, 0)
    assert text.explanation == "the text is not finished"
    list(text)
    assert text.prompt_tokens == len(lm.encode("the cat"))
    assert len(text.tokens) == 10
    assert text.prefill_s > 0
    assert text.decode_s > 0
    assert text.finish_reason == "length"
    assert text.explanation == "the limit of 10 tokens is reached"
    assert repr(text) == "<Generation of 10 tokens, length>"
    assert next(text, None) is None


def test_end_token_stops(
    lm: LanguageModel, expected: Expected, write_lm: WriteLm, tmp_path: Path
) -> None:
    tokens = greedy(expected, lm.encode("the man"), 40)
    end = next(token for i, token in enumerate(tokens) if i > 5 and token not in tokens[:i])
    model = opened(write_lm(tmp_path / "m.qc", end_tokens=(5000, end)))
    text = model.generate("the man", max_tokens=40)
    # Bytes that are no character are left out only where the text was cut off.
    shorter = lm.generate("the man", max_tokens=tokens.index(end))
    assert "".join(text).rstrip("\ufffd") == "".join(shorter)
    assert text.tokens == tokens[: tokens.index(end)]
    assert (text.finish_reason, text.explanation) == ("stop", "the model ended its answer")


def test_full_context_ends_the_text(lm: LanguageModel) -> None:
    prompt = "cat " * 40
    count = len(lm.encode(prompt))
    text = lm.generate(prompt, max_tokens=1000)
    list(text)
    # The last token need not be read, so it does not need room.
    assert len(text.tokens) == lm.max_context - count + 1
    assert text.finish_reason == "context"
    assert text.explanation == "the model's context of 150 tokens is full"


def test_prompt_longer_than_the_context(lm: LanguageModel) -> None:
    with pytest.raises(
        UsageError, match=r"the prompt has \d+ tokens, and the context of tiny holds 150; shorten"
    ):
        lm.generate("the cat " * 200)


def test_prompt_that_fills_the_context(lm: LanguageModel) -> None:
    text = lm.generate(lm.decode([70] * 150), max_tokens=5)
    assert text.prompt_tokens == 150
    list(text)
    assert (len(text.tokens), text.finish_reason) == (1, "context")


def test_same_seed_same_text(lm: LanguageModel) -> None:
    def draw(seed: int | None) -> list[int]:
        text = lm.generate("the", max_tokens=20, temperature=30.0, top_k=40, seed=seed)
        list(text)
        return text.tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    text = lm.generate("the", max_tokens=20, temperature=30.0, top_k=40)
    list(text)
    assert draw(text.seed) == text.tokens


def test_repetition_penalty(lm: LanguageModel) -> None:
    text = lm.generate("the cat", max_tokens=40, repetition_penalty=1e9)
    list(text)
    seen = [*lm.encode("the cat"), *text.tokens]
    assert len(set(text.tokens)) == len(text.tokens) == len(set(seen)) - text.prompt_tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number from 1"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 2}, "top_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_show_before_anything_runs(
    lm: LanguageModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        lm.generate("the", **options)
    assert message in str(caught.value)


def test_empty_prompt(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        lm.generate("")


@pytest.mark.parametrize("prompt", [3, None, b"the"[0]])
def test_prompt_that_is_no_text(lm: LanguageModel, prompt: Any) -> None:
    with pytest.raises(UsageError, match=f"the prompt is {prompt}; give a text or a list"):
        lm.generate(prompt)


def test_prompt_that_is_no_unicode(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="the text is not valid Unicode"):
        lm.generate("caf\udce9")


def test_begin_token(write_lm: WriteLm, tmp_path: Path, tokenizer: Tokenizer) -> None:
    begin = tokenizer.token_to_id("<|begin|>")
    model = opened(write_lm(tmp_path / "m.qc", begin_token=begin))
    ids = tokenizer.encode("the cat").ids
    assert model.encode("the cat") == [begin, *ids]
    assert model.encode("<|begin|>the cat") == [begin, *ids]
    assert model.generate("").prompt_tokens == 1


def test_chat_template(write_lm: WriteLm, tmp_path: Path, tokenizer: Tokenizer) -> None:
    begin = tokenizer.token_to_id("<|begin|>")
    model = opened(write_lm(tmp_path / "m.qc", chat_template=TEMPLATE, begin_token=begin))

    def prompt(given: Any, **options: Any) -> list[int]:
        return model._prompt_tokens(given, **({"raw": False} | options))

    wanted = "<|begin|>user: the cat<|end|><|begin|>"
    assert prompt("the cat") == tokenizer.encode(wanted).ids
    assert prompt([{"role": "user", "content": "the cat"}]) == tokenizer.encode(wanted).ids
    assert prompt("the cat").count(begin) == 2
    assert prompt("the cat", raw=True) == [begin, *tokenizer.encode("the cat").ids]
    with pytest.raises(UsageError, match="messages need a chat template, and raw is set"):
        prompt([{"role": "user", "content": "the cat"}], raw=True)
    with pytest.raises(UsageError, match="is no message"):
        model.generate([{"role": "user"}])


def test_names_of_special_tokens_in_templates(write_lm: WriteLm, tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}"
    model = opened(
        write_lm(
            tmp_path / "m.qc",
            chat_template=template,
            begin_token=0,
            end_tokens=(1,),
            special_tokens={"pad_token": "the"},
        )
    )
    rendered = model._template.render([{"role": "user", "content": ""}])
    assert rendered == "<|begin|><|end|>the"


def test_model_without_a_template_continues_the_text(lm: LanguageModel) -> None:
    raw, plain = (list(lm.generate("the", max_tokens=9, raw=raw)) for raw in (True, False))
    assert raw == plain
    with pytest.raises(UsageError, match="and tiny has no chat template; give the prompt as text"):
        lm.generate([{"role": "user", "content": "the"}])


def test_model_without_a_tokenizer(write_lm: WriteLm, tmp_path: Path, lm: LanguageModel) -> None:
    model = opened(write_lm(tmp_path / "m.qc", with_tokenizer=False))
    with pytest.raises(UsageError, match="without a tokenizer, so it takes tokens, not text"):
        model.generate("the")
    np.testing.assert_array_equal(model.logits([1, 2]), lm.logits([1, 2]))


def test_two_texts_at_once(lm: LanguageModel) -> None:
    prompts = ("the cat", "a mat on")
    apart = ["".join(lm.generate(prompt, max_tokens=25)) for prompt in prompts]
    one, two = (lm.generate(prompt, max_tokens=25) for prompt in prompts)
    mixed = ["", ""]
    for first, second in zip(one, two, strict=False):
        mixed[0] += first
        mixed[1] += second
    assert apart[0].startswith(mixed[0])
    assert apart[1].startswith(mixed[1])


def test_texts_from_several_threads(lm: LanguageModel) -> None:
    wanted = list(lm.generate("the cat", max_tokens=25))
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(lm.generate("the cat", max_tokens=25))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4


def test_closing_a_text_early(lm: LanguageModel) -> None:
    text = lm.generate("the cat", max_tokens=100)
    next(text)
    text.close()
    assert list(text) == []
    assert list(lm.generate("the cat", max_tokens=3))


def test_facts(lm: LanguageModel, table: np.ndarray) -> None:
    assert repr(lm) == "<LanguageModel tiny for here>"
    assert (lm.name, lm.vocab_size, lm.max_context) == ("tiny", len(table), 150)
    assert lm.threads >= 1


def test_round_trip_of_text(lm: LanguageModel) -> None:
    assert lm.decode(lm.encode("the cat, 日本語 😀")) == "the cat, 日本語 😀"


def test_closing_frees_the_weights(write_lm: WriteLm, tmp_path: Path) -> None:
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    folder = write_lm(tmp_path / "m.qc", weights=np.ones((300_000, 16), np.float32))
    # The weights do not fit the kernel, but it is not called.
    load(folder).close()
    before = resident()
    for _ in range(5):
        load(folder).close()
    assert resident() < before + 30e6  # five times 19 MB would be far above
