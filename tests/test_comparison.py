"""Pipelines side by side, on a tiny model that reads bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler import comparison
from qcompiler.core.errors import ArtifactError, ConfigError, QCompilerError, UsageError
from tests.families import save_tiny_llama

pytestmark = pytest.mark.tvm

TEXT = "It was the best of times, it was the worst of times. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny-llama")


def test_pipelines_are_compared_with_float(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "four.toml"
    own.write_text(
        (Path(comparison.__file__).parent.parent / "passes/presets/w4a8.toml").read_text()
    )
    output = tmp_path / "kept" / "here"
    found = qcompiler.compare(
        model, ["w8a8", own], text=TEXT, output=output, tokens=200, temperatures=(0.5, 1.0)
    )
    reference, eight, four = found
    assert [one.name for one in found] == ["float", "w8a8", "four"]
    assert reference.evaluation.kl is None
    assert eight.evaluation.kl is not None
    assert four.evaluation.kl is not None
    assert 0 < eight.evaluation.kl < four.evaluation.kl
    assert reference.bytes > eight.bytes > four.bytes
    assert (reference.bits_per_weight, eight.bits_per_weight) == (32.0, 8.5)
    for one in found:
        assert one.evaluation.tokens == 198  # in two windows
        assert one.speed.decode_tokens_per_s > 0
        assert one.compile_seconds > 0
        assert one.compile_memory_bytes > 50_000_000
        assert [at.temperature for at in one.temperatures] == [0.5, 1.0]
        assert all(0 < at.distinct <= 1 and 0 <= at.repeated < 1 for at in one.temperatures)
        assert [at.kl is None for at in one.temperatures] == [one is reference] * 2
    # The same as each is found to be by itself.
    for one in found:
        beside = None if one is reference else output / "float.qc"
        place = output / f"{one.name}.qc"
        alone = qcompiler.evaluate(place, text=TEXT, reference=beside, tokens=200)
        assert one.evaluation == alone
    # What is kept can be run.
    assert sorted(path.name for path in output.iterdir()) == ["float.qc", "four.qc", "w8a8.qc"]
    assert qcompiler.load(output / "four.qc").logits([1, 2, 3]).shape == (3, 256)


@pytest.mark.parametrize(
    ("pipelines", "error", "says"),
    [
        ([], UsageError, "name a pipeline beside float"),
        (["w4a9"], ConfigError, "w4a8"),
        (["a/x.toml"], QCompilerError, "a/x.toml"),
    ],
)
def test_what_cannot_be_compared(
    pipelines: list[str], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        qcompiler.compare("smollm2-135m", pipelines, text=TEXT, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name(tmp_path: Path) -> None:
    text = '[[pass]]\nname = "legalize"\n'
    files = [tmp_path / name / "mine.toml" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(text)
    with pytest.raises(UsageError, match=r"are both called mine; rename a file"):
        qcompiler.compare("smollm2-135m", files, text=TEXT)


def test_an_artifact_that_is_there_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w8a8.qc").mkdir()
    (tmp_path / "w8a8.qc" / "notes.txt").write_text("mine")
    monkeypatch.setattr(comparison, "_compile", lambda *a, **o: pytest.fail("it was begun"))
    with pytest.raises((UsageError, ArtifactError), match=r"w8a8\.qc"):
        qcompiler.compare("smollm2-135m", ["w8a8"], text=TEXT, output=tmp_path)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out is a file; name a folder for the artifacts"):
        qcompiler.compare("smollm2-135m", ["w8a8"], text=TEXT, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "a", "temperatures": ()}, "the text has 1 tokens; 2 are the least"),
        ({"text": TEXT, "tokens": 1000}, "the text has 636 tokens; 1000 are to be scored; give a"),
        ({"text": TEXT, "tokens": 1}, "1 tokens cannot be scored; ask for 2 or more"),
        ({"text": TEXT[:127]}, "the text has 127 tokens; the 4 texts that are drawn .* 128 of"),
        ({"text": TEXT, "temperatures": (0.0,)}, "a number above 0"),
        ({"text": TEXT, "samples": 4}, "no pass of this pipeline runs the model on samples"),
        (
            {"text": TEXT, "pipelines": ["w8a8", "w4a8-gptq"], "sequence_length": 400},
            "samples of 400 tokens do not fit the context of tiny-llama",
        ),
    ],
)
def test_texts_that_do_not_suffice_are_found_before_anything_is_compiled(
    options: dict[str, Any],
    says: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "_compile", lambda *a, **o: pytest.fail("it was begun"))
    if "sequence_length" in options:
        options = options | {"calibration": [tmp_path / "long.txt"]}
        (tmp_path / "long.txt").write_text(TEXT * 2)
    given = {"pipelines": ["w8a8"], "output": tmp_path / "out"} | options
    with pytest.raises(UsageError, match=says):
        qcompiler.compare(model, **given)
    assert not (tmp_path / "out").exists()


def test_what_is_no_language_model_is_found_before_anything_is_compiled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_compile", lambda *a, **o: pytest.fail("it was begun"))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is compiled already; a pipeline goes with a model"):
        qcompiler.compare(tmp_path, ["w8a8"], text=TEXT)


def test_a_pipeline_that_fails_is_named(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "odd.toml"
    own.write_text(
        '[[pass]]\nname = "canonicalize"\n[[pass]]\nname = "set-bits"\n'
        'rules = [{ pattern = "no.such.*", scheme = "w4a8g32" }]\n'
        '[[pass]]\nname = "quantize-rtn"\n[[pass]]\nname = "legalize"\n'
    )
    with pytest.raises(QCompilerError, match=r"odd\.toml failed: .*no\.such"):
        qcompiler.compare(model, [own], text=TEXT)
