"""The runner through its C interface, built with sanitizers: the same answers as from Python."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from qcompiler.core.artifact import read_manifest
from qcompiler.runner.chat_pieces import chat_pieces
from qcompiler.runner.export import write_model
from qcompiler.runtime import LanguageModel, load
from qcompiler.runtime.chat import ChatTemplate
from qcompiler.runtime.sampling import Sampler, SamplingOptions
from tests.families import byte_tokenizer
from tests.runner_program import Driver, RunnerError, needs_cmake

pytestmark = [pytest.mark.tvm, pytest.mark.timeout(600), needs_cmake]
ByPipeline = Callable[[str], Path]
ROOT = Path(__file__).parent.parent.parent

PROMPTS = ("a", "the cat sat on the mat", "x" * 100, "é 😀 ñ")


def opened(artifact: Path) -> LanguageModel:
    model = load(artifact)
    assert isinstance(model, LanguageModel)
    return model


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


# -- damage ----------------------------------------------------------------------------------------


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
