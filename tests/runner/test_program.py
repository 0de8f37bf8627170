"""The program qcompiler-run, conversations, and the example of the page; with sanitizers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from qcompiler.core.artifact import read_manifest
from qcompiler.runner.chat_pieces import chat_pieces
from qcompiler.runner.export import write_model
from qcompiler.runtime.chat import ChatTemplate
from tests.families import byte_tokenizer
from tests.runner_program import Driver, RunnerError, needs_cmake, opened

pytestmark = [pytest.mark.tvm, pytest.mark.timeout(600), needs_cmake]
ByPipeline = Callable[[str], Path]
ROOT = Path(__file__).parent.parent.parent

# -- conversations ---------------------------------------------------------------------------------

TEMPLATE = (
    "{{ '<' }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}|{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "  Hello\\n \u2003"},
    {"role": "assistant", "content": "Hi\tthere\r\n"},
    {"role": "user", "content": "é"},
]


@pytest.fixture
def chatting(driver: Driver, compiled: ByPipeline, tmp_path: Path) -> Driver:
    template = ChatTemplate(TEMPLATE, {})
    manifest = read_manifest(compiled("float"))
    pieces = chat_pieces(template)
    write_model(tmp_path / "model", compiled("float"), manifest, byte_tokenizer(), pieces)
    driver.load(tmp_path / "model")
    return driver


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("begin", [0, 1])
def test_conversations(count: int, begin: int, chatting: Driver) -> None:
    messages = [*MESSAGES, *MESSAGES[2:]][begin : 2 * count]
    expected = ChatTemplate(TEMPLATE, {}).render(messages)
    assert chatting.render(messages) == expected
    answer = chatting.generate(messages)
    # The template writes all special tokens itself, and this tokenizer adds none.
    assert answer.tokens == chatting.generate(expected).tokens
    if len(messages) == 1:
        assert chatting.generate(messages[0]["content"], chat=True).tokens == answer.tokens


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "there are no messages; give at least one of the user's"),
        (MESSAGES[:1], "the user says nothing; give a message of the user's"),
        (MESSAGES[1:3], "has a message of 'assistant' where 'user' should speak"),
        ([MESSAGES[1], MESSAGES[1]], "has a message of 'user' where 'assistant' should speak"),
        ([{"role": "tool", "content": "x"}], "has a message of 'tool' where 'user' should speak"),
    ],
)
def test_conversations_that_cannot_be(
    messages: list[dict[str, str]], sentence: str, chatting: Driver
) -> None:
    with pytest.raises(RunnerError, match=sentence):
        chatting.render(messages)


# -- the page --------------------------------------------------------------------------------------


def test_the_example_of_the_page(
    sanitized: Path, exported: ByPipeline, compiled: ByPipeline, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```c\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "example.c").write_text(example)
    program, library, source = tmp_path / "example", sanitized / "libqcompiler.a", exported("float")
    compile_c = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    include = f"-I{source / 'include'}"
    subprocess.run(
        [*compile_c, include, "-c", "example.c", "-o", "example.o"], cwd=tmp_path, check=True
    )
    places = [f"-L{source / 'lib'}", f"-Wl,-rpath,{source / 'lib'}"]
    tvm = ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"]
    link = ["g++", "-fsanitize=address,undefined", tmp_path / "example.o", library, *places, *tvm]
    subprocess.run([*link, "-o", program], check=True)
    done = subprocess.run([program, source / "model"], capture_output=True, text=True, check=False)
    with opened(compiled("float")) as model:
        expected = "".join(model.generate("The sea is", max_tokens=32, temperature=0.7, seed=1))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{expected}\n32 tokens in ")
    wrong = subprocess.run([program, tmp_path], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "is no exported model" in wrong.stderr


# -- the program -----------------------------------------------------------------------------------


def run(folder: Path, *arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "qcompiler-run", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_answers(sanitized: Path, exported: ByPipeline, compiled: ByPipeline) -> None:
    model = exported("w4a8") / "model"
    with opened(compiled("w4a8")) as python:
        expected = python.generate("the cat", max_tokens=16)
        text = "".join(expected)
    done = run(sanitized, model, "-p", "the cat", "-n", "16")
    assert (done.returncode, done.stdout.rstrip("\n")) == (0, text.rstrip("\n"))
    assert "(the limit of 16 tokens is reached)\n(16 tokens, " in done.stderr
    assert " tokens/s; prompt of 7 tokens in " in done.stderr
    read = run(sanitized, model, "--prompt=-", "--max-tokens", 16, "--tokens", text="the cat")
    assert [int(word) for word in read.stdout.split()] == expected.tokens
    drawing = (model, "-p", "x", "--temperature", "2", "--seed", "3", "-n", 8)
    others = ((), ("--map", "--verify", "--threads", "1"), ("--top-k", "1"))
    drawn = [run(sanitized, *drawing, *more) for more in others]
    assert drawn[0].stdout == drawn[1].stdout != drawn[2].stdout


def test_the_program_chats(sanitized: Path, chatting: Driver, tmp_path: Path) -> None:
    first = [{"role": "user", "content": "one"}]
    answer = chatting.generate(first, max_tokens=8).text
    second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "two"}]
    then = chatting.generate(second, max_tokens=8).text
    done = run(sanitized, tmp_path / "model", "--chat", "-n", 8, text="one\n\ntwo\n/clear\none\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "") == (answer + then + answer).replace("\n", "")
    assert "tiny answers. An empty line is ignored" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((), 2, "Usage: qcompiler-run MODEL"),
        (("MODEL",), 2, "error: there is no prompt; give -p TEXT, -p - to read it from"),
        (("MODEL", "-p"), 2, "error: -p needs a value"),
        (("MODEL", "--speed", "9"), 2, "error: there is no option --speed; --help lists them"),
        (("MODEL", "x", "-p", "a"), 2, "error: 'x' is one argument too many; --help tells"),
        (("MODEL", "-p", "a", "-n", "0"), 2, "error: -n is '0'; give a whole number from 1"),
        (("MODEL", "-p", "a", "--top-p", "x"), 2, "error: --top-p is 'x'; give a number"),
        (("MODEL", "-p", "a", "--top-p", "2"), 2, "error: top_p is 2; give a number above 0"),
        (("MODEL", "-p", ""), 2, "error: the prompt is empty; write something"),
        (("MODEL", "-p", "a", "--chat"), 2, "error: tiny has no chat template; give the prompt"),
        (("nowhere", "-p", "a"), 1, "error: there is no nowhere; give the folder 'model'"),
    ],
)
def test_the_program_ends_with_a_sentence(
    arguments: tuple[str, ...],
    status: int,
    sentence: str,
    sanitized: Path,
    exported: ByPipeline,
) -> None:
    model = str(exported("float") / "model")
    done = run(sanitized, *(model if word == "MODEL" else word for word in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(sentence)
    assert status != 1 or done.stderr.count("\n") == 1


def test_the_program_explains_itself(sanitized: Path) -> None:
    done = run(sanitized, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--repetition-penalty" in done.stdout
