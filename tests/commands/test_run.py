"""`qcompiler run`: prompts, conversations, and what is said beside the answer."""

from __future__ import annotations

import builtins
import inspect
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qcompiler import cli
from qcompiler.commands import run
from qcompiler.core.errors import UsageError
from qcompiler.runtime import LanguageModel

ROOT = Path(__file__).parent.parent.parent


class Answer(Iterator[str]):
    """Pieces, then a reason why they ended."""

    def __init__(self, pieces: list[str], finish_reason: str = "stop") -> None:
        self._pieces = iter(pieces)
        self.finish_reason = finish_reason
        self.explanation = f"it ended by {finish_reason}"
        self.decode_s = 0.5
        self.tokens = [1, 2, 3]

    def __next__(self) -> str:
        return next(self._pieces)


class Model(LanguageModel):
    """Records what it is asked; `answers` decides what it says."""

    name = "fake"

    def __init__(self, template: str | None = "{{ messages }}") -> None:
        self.manifest = SimpleNamespace(model=SimpleNamespace(chat_template=template))
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.answers: Callable[[Any], Answer] = lambda prompt: Answer(["Par", "is."])
        self.closed = False

    def generate(self, prompt: Any, **options: Any) -> Any:
        self.asked.append((prompt, options))
        return self.answers(prompt)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    fake = Model()
    monkeypatch.setattr(run, "load", lambda path, threads: fake)
    return fake


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let a person at a terminal type these lines, then Ctrl-D."""
    typed = iter(lines)

    def fake_input(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", fake_input)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))


def test_a_prompt_is_answered_with_the_options_given(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "out.qc", "--prompt", "Capital?", "--max-tokens", "8", "--top-k", "5"]
    arguments += ["--temperature", "0.7", "--top-p", "0.9", "--repetition-penalty", "1.1"]
    assert cli.main([*arguments, "--seed", "3", "--raw"]) == 0
    assert capsys.readouterr() == ("Paris.\n", "")
    assert model.asked == [
        (
            "Capital?",
            {
                "max_tokens": 8,
                "temperature": 0.7,
                "top_k": 5,
                "top_p": 0.9,
                "repetition_penalty": 1.1,
                "seed": 3,
                "raw": True,
            },
        )
    ]
    assert model.closed


def test_defaults_are_those_of_generate(model: Model) -> None:
    assert cli.main(["run", "out.qc", "--prompt", "x"]) == 0
    parameters = inspect.signature(LanguageModel.generate).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert model.asked == [("x", defaults)]


def test_a_prompt_from_standard_input(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines"))
    assert cli.main(["run", "out.qc", "--prompt", "-"]) == 0
    assert model.asked[0][0] == "two\nlines"


def test_an_answer_that_was_cut_says_why(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.answers = lambda prompt: Answer(["Once upon"], "context")
    assert cli.main(["run", "out.qc", "--prompt", "x"]) == 0
    assert capsys.readouterr() == ("Once upon\n", "(it ended by context)\n")


def test_no_prompt_and_no_terminal_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(["run", "out.qc"]) == 2
    assert "there is no prompt; give --prompt TEXT" in capsys.readouterr().err


def test_other_models_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "load", lambda path, threads: object())
    assert cli.main(["run", "out.qc", "--prompt", "x"]) == 2
    assert "out.qc is no language model" in capsys.readouterr().err


def test_a_conversation_is_remembered_until_it_is_cleared(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "Hello", "", "Go on", "/clear", "Again")
    assert cli.main(["run", "out.qc"]) == 0
    asked = [[(m["role"], m["content"]) for m in prompt] for prompt, _ in model.asked]
    assert asked == [
        [("user", "Hello")],
        [("user", "Hello"), ("assistant", "Paris."), ("user", "Go on")],
        [("user", "Again")],
    ]
    assert capsys.readouterr().out == "Paris.\n" * 3 + "\n"


@pytest.mark.parametrize("raw", [True, False])
def test_a_model_without_template_sees_each_line_by_itself(
    raw: bool, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not raw:
        model.manifest.model.chat_template = None
    type_lines(monkeypatch, "one", "two")
    assert cli.main(["run", "out.qc", *(["--raw"] if raw else [])]) == 0
    assert [prompt for prompt, _ in model.asked] == ["one", "two"]


def test_a_conversation_survives_what_does_not_fit(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(prompt: Any) -> Answer:
        if prompt[-1]["content"] == "long":
            raise UsageError("the prompt has 9999 tokens")
        return Answer(["ok"])

    model.answers = answers
    type_lines(monkeypatch, "long", "short")
    assert cli.main(["run", "out.qc"]) == 0
    assert [m["content"] for m in model.asked[-1][0]] == ["short"]
    assert "error: the prompt has 9999 tokens" in capsys.readouterr().err


def test_ctrl_c_cuts_an_answer_not_the_conversation(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(prompt: Any) -> Answer:
        if prompt[-1]["content"] == "bore me":
            raise KeyboardInterrupt
        return Answer(["ok"])

    model.answers = answers
    type_lines(monkeypatch, "bore me", "better")
    assert cli.main(["run", "out.qc"]) == 0
    assert [m["content"] for m in model.asked[-1][0]] == ["better"]


def test_nothing_of_the_compiler_is_loaded() -> None:
    code = (
        "import sys, qcompiler.commands.run, qcompiler.cli\n"
        "heavy = {'torch', 'tvm', 'transformers', 'scipy', 'networkx', 'passes', 'codegen'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
