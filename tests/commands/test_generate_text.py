"""`generate-text` through the command line: a file, a line about it, one sentence for mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from qcompiler.cli import main
from qcompiler.core.artifact import MANIFEST
from tests.families import save_tiny_llama


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny-llama")


def test_a_file_and_a_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    command = ["generate-text", str(model), "--samples", "3", "--sequence-length", "12"]
    said = []
    for file, seed in zip(files, "001", strict=True):
        assert main([*command, "-o", str(file), "--seed", seed]) == 0
        out, err = capsys.readouterr()
        assert out == f"{file}\n"
        said.append(err.splitlines()[-1])
    assert re.fullmatch(r"3 × 12 = 36 tokens in .* m?s, \d+ tokens/s", said[0])
    assert said[1] == "3 × 12 = 36 tokens from the cache"
    first, same, other = (file.read_text() for file in files)
    assert first == same != other
    assert main([*command, "-o", str(files[0]), "-q"]) == 0
    assert capsys.readouterr() == (f"{files[0]}\n", "")


def test_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.txt"
    command = ["generate-text", str(model), "-o", str(file), "--samples", "2", "--json", "-q"]
    for cached in (False, True):
        assert main([*command, "--sequence-length", "8"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.pop("cached") is cached
        assert (found.pop("seconds") is None, found.pop("tokens_per_s") is None) == (cached, cached)
        assert found == {"file": str(file), "samples": 2, "sequence_length": 8, "tokens": 16}


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        (["-o", "{folder}"], 2, "is a folder; name a file"),
        (["-o", "{folder}/no/a.txt"], 2, "there is no folder"),
        (["--samples", "0"], 2, "Invalid value for '--samples'"),
        (["--sequence-length", "1"], 2, "Invalid value for '--sequence-length'"),
        (["--temperature", "0"], 2, "--temperature 0: give a number above 0"),
        (["--temperature", "-1"], 2, "--temperature -1: give a number above 0"),
        (["--sequence-length", "500"], 2, "do not fit the context of tiny-llama"),
    ],
)
def test_mistakes(
    changes: list[str],
    status: int,
    says: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [change.format(folder=tmp_path) for change in changes]
    command = ["generate-text", str(model), "-o", str(tmp_path / "a.txt"), *given, "-q"]
    assert main(command) == status
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not list(tmp_path.iterdir())


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    for name, says in ((tmp_path, "is not a model's folder"), ("nothing", "there is no file or")):
        assert main(["generate-text", str(name), "-o", str(tmp_path / "a.txt"), "-q"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert not (tmp_path / "a.txt").exists()
