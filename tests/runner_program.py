"""The exported runner built from its sources, and a hand on its C interface."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcompiler.runtime import LanguageModel, load

SOURCE = Path(__file__).parent.parent / "qcompiler" / "runner" / "source"
DRIVER = Path(__file__).parent / "runner" / "driver.c"

needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")),
    reason="building the runner needs cmake and g++ (apt-get install cmake g++)",
)


def build(exported: Path, base: Path, *options: str) -> Path:
    """Build an exported folder with its driver and return where; once for all processes.

    `base` is a folder of this test run; `options` are CMake's. Raises AssertionError with what the
    compiler says, warnings included.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    digest = hashlib.sha256(repr(options).encode())
    for file in sorted([DRIVER, *SOURCE.rglob("*")]):
        if file.is_file():
            digest.update(file.read_bytes())
    place = base / f"runner-{digest.hexdigest()[:16]}"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            _build(exported, place, options)
            (place / "done").touch()
    return place


def _build(exported: Path, place: Path, options: Sequence[str]) -> None:
    # Not in the exported folder itself, which goes with the test that made it.
    folder = place / "source"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns("model"))
    shutil.copy(DRIVER, folder / "driver.c")
    with (folder / "CMakeLists.txt").open("a") as lists:
        lists.write(
            "\nadd_executable(driver driver.c)\n"
            "target_link_libraries(driver PRIVATE qcompiler)\n"
            'set_target_properties(driver PROPERTIES BUILD_RPATH "${QC_LIBRARIES}" C_STANDARD 99)\n'
            "target_compile_options(driver PRIVATE -Wall -Wextra -Wpedantic -Werror)\n"
            "foreach(name qcompiler qcompiler-run)\n"
            "  target_compile_options(${name} PRIVATE -Werror)\n"
            "endforeach()\n"
        )
    # Tests share the processors: one compiler each.
    for command in (
        ["cmake", "-S", str(folder), "-B", str(place), *options],
        ["cmake", "--build", str(place)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Answer:
    """What `generate` returned. finish: 0 stop, 1 length, 2 context, 3 cancelled."""

    finish: int
    prompt_tokens: int
    count: int
    seed: int
    text: str
    tokens: list[int]


class RunnerError(Exception):
    """What the C interface said, and whether it was "failed" or "misused"."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Driver:
    """A process that does through the C interface what it is told to.

    `program` is what `build` made of driver.c, maybe behind what runs it.
    """

    def __init__(self, *program: str | Path) -> None:
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"},
        )

    def close(self) -> None:
        """End the process; sanitizers speak up at the end, of leaks too."""
        assert self._process.stdin is not None
        _, said = self._process.communicate()
        assert (self._process.returncode, said) == (0, ""), said

    def tell(self, *words: object) -> list[str]:
        """Return the words of the answer, without the first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer.endswith("\n"):
            raise AssertionError(f"the driver ended: {self._process.communicate()[1]}")
        first, _, rest = answer.rstrip("\n").partition(" ")
        if first != "ok":
            raise RunnerError(first, rest)
        return rest.split()

    def load(
        self, folder: Path, *, slot: int = 0, threads: int = 0, mapped: bool = False,
        verify: bool = False,
    ) -> list[str]:  # fmt: skip
        return self.tell("load", slot, to_hex(str(folder)), threads, int(mapped), int(verify))

    def free(self, slot: int = 0) -> None:
        self.tell("free", slot)

    def encode(self, text: str | bytes, *, slot: int = 0) -> list[int]:
        return [int(word) for word in self.tell("encode", slot, to_hex(text))]

    def decode(self, tokens: Sequence[int], *, slot: int = 0) -> str:
        (text,) = self.tell("decode", slot, *tokens)
        return from_hex(text)

    def render(self, messages: Sequence[dict[str, str]], *, slot: int = 0) -> str:
        (text,) = self.tell("render", slot, *_words(messages))
        return from_hex(text)

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[dict[str, str]],
        *,
        slot: int = 0,
        max_tokens: int = 16,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = -1,
        stop_after: int = 0,
        chat: bool = False,
    ) -> Answer:
        words: list[object]
        if isinstance(prompt, str):
            words = ["chat" if chat else "text", to_hex(prompt)]
        elif prompt and isinstance(prompt[0], dict):
            words = ["messages", *_words(prompt)]  # type: ignore[arg-type]
        else:
            words = ["tokens", *prompt]
        options = (max_tokens, temperature, top_k, top_p, repetition_penalty, seed, stop_after)
        finish, prompt_tokens, count, used, timed, text, *tokens = self.tell(
            "generate", slot, *options, *words
        )
        assert timed == "1"
        return Answer(
            finish=int(finish),
            prompt_tokens=int(prompt_tokens),
            count=int(count),
            seed=int(used),
            text=from_hex(text),
            tokens=[int(token) for token in tokens],
        )

    def logits(self, parts: Sequence[Sequence[int]], *, slot: int = 0) -> list[float]:
        """Read a sequence part by part, twice; return the last logits."""
        words: list[object] = []
        for part in parts:
            words += [*(["/"] if words else []), *part]
        length, *logits = self.tell("session", slot, *words)
        assert int(length) == sum(map(len, parts))
        return [float(value) for value in logits]


def to_hex(text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    return data.hex() or "-"


def from_hex(word: str) -> str:
    return "" if word == "-" else bytes.fromhex(word).decode()


def _words(messages: Sequence[dict[str, str]]) -> list[str]:
    return [word for m in messages for word in (m["role"], to_hex(m["content"]))]


def opened(artifact: Path) -> LanguageModel:
    """Load a language model into this process."""
    model = load(artifact)
    assert isinstance(model, LanguageModel)
    return model
