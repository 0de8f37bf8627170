"""The runner through its C interface, built with sanitizers: the same answers as from Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from qcompiler.core.artifact import read_manifest
from qcompiler.runner.export import write_model
from qcompiler.runtime.sampling import Sampler, SamplingOptions
from tests.runner_program import Driver, RunnerError, needs_cmake, opened

pytestmark = [pytest.mark.tvm, pytest.mark.timeout(600), needs_cmake]
ByPipeline = Callable[[str], Path]

PROMPTS = ("a", "the cat sat on the mat", "x" * 100, "é 😀 ñ")


def finish(reason: str | None) -> int:
    return ("stop", "length", "context").index(str(reason))


# -- the same answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["float", "w8a8", "w4a8"])
@pytest.mark.parametrize("mapped", [False, True])
def test_greedy_answers(
    pipeline: str, mapped: bool, driver: Driver, exported: ByPipeline, compiled: ByPipeline
) -> None:
    with opened(compiled(pipeline)) as model:
        name, *facts = driver.load(exported(pipeline) / "model", mapped=mapped)
        assert name == model.name
        assert [int(fact) for fact in facts] == [model.vocab_size, model.max_context, model.threads]
        for prompt in PROMPTS:
            expected = model.generate(prompt, max_tokens=20)
            text = "".join(expected)
            answer = driver.generate(prompt, max_tokens=20)
            assert answer.tokens == expected.tokens
            assert answer.text == text
            assert answer.finish == finish(expected.finish_reason)
            assert answer.prompt_tokens == expected.prompt_tokens
            assert answer.count == len(expected.tokens)


def test_answers_fill_the_context(
    driver: Driver, exported: ByPipeline, compiled: ByPipeline
) -> None:
    """The caches of this model end at 128 tokens."""
    with opened(compiled("w4a8")) as model:
        driver.load(exported("w4a8") / "model")
        expected = model.generate("b" * 50, max_tokens=1000)
        list(expected)
        answer = driver.generate("b" * 50, max_tokens=1000)
        assert answer.tokens == expected.tokens
        assert (answer.finish, len(answer.tokens)) == (2, 128 - 50 + 1)
        whole = driver.generate("b" * 128, max_tokens=5)
        assert (whole.finish, whole.count) == (2, 1)


@pytest.mark.parametrize("parts", [[[5]], [[1, 2, 3]], [[1], [2], [3, 4, 5], [6], [7, 8]]])
@pytest.mark.parametrize("pipeline", ["float", "w8a8"])
def test_logits_of_a_session(
    parts: list[list[int]],
    pipeline: str,
    driver: Driver,
    exported: ByPipeline,
    compiled: ByPipeline,
) -> None:
    driver.load(exported(pipeline) / "model")
    with opened(compiled(pipeline)) as model:
        session = model.new_session()
        for part in parts:
            expected = session.prefill(part)
    assert np.array_equal(np.float32(driver.logits(parts)), expected)


def test_two_models_and_one_after_the_other(
    driver: Driver, exported: ByPipeline, compiled: ByPipeline
) -> None:
    def says(pipeline: str) -> list[int]:
        with opened(compiled(pipeline)) as model:
            text = model.generate("the cat", max_tokens=12)
            list(text)
            return text.tokens

    expected = {name: says(name) for name in ("float", "w4a8")}
    for _ in range(2):
        driver.load(exported("float") / "model", slot=0)
        driver.load(exported("w4a8") / "model", slot=1, threads=1)
        for _ in range(3):
            assert driver.generate("the cat", slot=0, max_tokens=12).tokens == expected["float"]
            assert driver.generate("the cat", slot=1, max_tokens=12).tokens == expected["w4a8"]
        driver.free(0)
        assert driver.generate("the cat", slot=1, max_tokens=12).tokens == expected["w4a8"]
        driver.free(1)
    # NULL is freed without harm.
    driver.free(3)


def test_a_folder_that_was_exported_again_runs_its_new_code(
    driver: Driver, exported: ByPipeline, compiled: ByPipeline, tmp_path: Path
) -> None:
    for pipeline in ("float", "w4a8", "float"):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(exported(pipeline) / "model", tmp_path / "model")
        driver.load(tmp_path / "model")
        with opened(compiled(pipeline)) as model:
            expected = model.generate("again", max_tokens=12)
            list(expected)
        assert driver.generate("again", max_tokens=12).tokens == expected.tokens
        driver.free()


# -- sampling --------------------------------------------------------------------------------------

OPTIONS = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.5},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 12345, 2**40 + 3])
def test_tokens_are_drawn_as_from_python(
    options: dict[str, float], seed: int, driver: Driver
) -> None:
    logits = np.random.default_rng(seed).normal(size=400).astype(np.float32) * 3
    logits[17] = logits[30]
    seen = [3, 17, 399]
    sampler = Sampler(SamplingOptions(**options, seed=seed), seen)  # type: ignore[arg-type]
    expected = [sampler.pick(logits) for _ in range(60)]
    given = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} | options
    words = [*given.values(), seed, 60, *seen, "/", *map(repr, map(float, logits))]
    assert [int(token) for token in driver.tell("sample", *words)] == expected


def test_ties_go_to_the_first(driver: Driver) -> None:
    logits = [0.0] * 3000
    for place in (2999, 1500, 40):
        logits[place] = 5.0
        assert driver.tell("sample", 0, 0, 1, 1, 0, 1, "/", *logits) == [str(place)]


def test_seeds(driver: Driver, exported: ByPipeline, compiled: ByPipeline) -> None:
    driver.load(exported("float") / "model")
    with opened(compiled("float")) as model:
        text = model.generate("the", max_tokens=20, temperature=1.5, top_k=50, seed=7)
        list(text)
    first = driver.generate("the", max_tokens=20, temperature=1.5, top_k=50, seed=7)
    assert first.tokens == text.tokens
    new = driver.generate("the", max_tokens=20, temperature=1.5)
    assert new.seed >= 0
    again = driver.generate("the", max_tokens=20, temperature=1.5, seed=new.seed)
    assert again.tokens == new.tokens


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "temperature is -1; give 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan; give 0 or more"),
        ({"top_k": -2}, "top_k is -2; give a whole number from 1, or 0"),
        ({"top_p": 0.0}, "top_p is 0; give a number above 0, and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; give a number above 0, and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0; give a number above 0, for"),
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number from 1"),
    ],
)
def test_options_out_of_range(
    options: dict[str, float], sentence: str, driver: Driver, exported: ByPipeline
) -> None:
    driver.load(exported("float") / "model")
    with pytest.raises(RunnerError, match=sentence) as raised:
        driver.generate("a", **options)  # type: ignore[arg-type]
    assert raised.value.kind == "misused"


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_logits_that_are_no_numbers(wrong: str, driver: Driver) -> None:
    assert driver.tell("sample", 0, 0, 1, 1, 0, 1, "/", 1, 2, wrong, 3) == ["-1"]
    assert driver.tell("sample", 1, 0, 1, 1, 0, 1, "/", 1, 2, wrong, 3) == ["-1"]


# -- callbacks and prompts -------------------------------------------------------------------------


def test_a_callback_can_stop(driver: Driver, exported: ByPipeline) -> None:
    driver.load(exported("float") / "model")
    whole = driver.generate("stop", max_tokens=9)
    cut = driver.generate("stop", max_tokens=9, stop_after=4)
    assert (cut.finish, cut.count) == (3, 4)
    assert cut.tokens == whole.tokens[:4]
    assert driver.generate("stop", max_tokens=9).tokens == whole.tokens


def test_prompts_that_cannot_be(driver: Driver, exported: ByPipeline) -> None:
    driver.load(exported("float") / "model")
    with pytest.raises(RunnerError, match="the prompt is empty; write something"):
        driver.generate("")
    with pytest.raises(RunnerError, match="the prompt has 129 tokens, and the context of tiny ho"):
        driver.generate("a" * 129)
    with pytest.raises(RunnerError, match="token 256 is not in the vocabulary, which has 256"):
        driver.generate([1, 256])
    with pytest.raises(RunnerError, match="token -1 is not in the vocabulary"):
        driver.logits([[-1]])
    with pytest.raises(RunnerError, match=r"100 more tokens do not fit: .* 50 of which are taken"):
        driver.logits([[1] * 50, [1] * 100])
    with pytest.raises(RunnerError, match="tiny has no chat template; give the prompt as plain"):
        driver.generate("hello", chat=True)
    # It still works.
    assert driver.generate([1, 2]).count == 16


def test_a_model_without_a_tokenizer(
    driver: Driver, compiled: ByPipeline, exported: ByPipeline, tmp_path: Path
) -> None:
    manifest = read_manifest(compiled("float"))
    write_model(tmp_path / "model", compiled("float"), manifest, None, "tiny has no tokenizer")
    driver.load(tmp_path / "model", slot=0)
    driver.load(exported("float") / "model", slot=1)
    tokens = driver.generate([7, 8, 9], slot=0)
    assert tokens.tokens == driver.generate([7, 8, 9], slot=1).tokens
    assert tokens.text == ""
    with pytest.raises(RunnerError, match="was compiled without a tokenizer, so it takes tokens"):
        driver.generate("text", slot=0)
