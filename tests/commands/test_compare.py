"""What `compare` prints and draws, of figures that are made up here."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler.benchmark import BenchResult
from qcompiler.cli import main
from qcompiler.comparison import Contender
from qcompiler.evaluation import Comparison, Evaluation
from qcompiler.temperature import AtTemperature

SPEED = BenchResult(
    prefill_tokens_per_s=2000.0,
    decode_tokens_per_s=300.0,
    time_to_first_token_s=0.5,
    peak_memory_bytes=200_000_000,
    weight_bytes=90_000_000,
    stream_bytes_per_s=3e10,
    threads=2,
    limits=None,
    functions=(),
)


def contender(name: str, kl: float | None) -> Contender:
    beside = None
    if kl is not None:
        beside = Comparison(
            nll_difference=0.1,
            nll_difference_error=0.01,
            interval=(0.08, 0.12),
            reference_nll=3.0,
            reference_perplexity=20.1,
            kl_interval=(kl / 2, kl * 2),
            verdict="more than noise",
        )
    return Contender(
        name=name,
        bytes=90_000_000,
        bits_per_weight=4.5,
        compile_seconds=65.0,
        compile_memory_bytes=1_200_000_000,
        evaluation=Evaluation(
            nll=3.0,
            nll_error=0.1,
            nll_interval=(2.8, 3.2),
            perplexity=20.0855,
            perplexity_interval=(16.44, 24.53),
            tokens=500,
            blocks=4,
            kl=kl,
            top1_agreement=None if kl is None else 0.75,
            comparison=beside,
        ),
        speed=SPEED,
        temperatures=(AtTemperature(temperature=0.5, kl=kl, repeated=0.25, distinct=0.875),),
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `compare` was called with."""
    seen: dict[str, Any] = {}

    def compare(model: str, pipelines: tuple[str, ...], **options: Any) -> list[Contender]:
        seen.update(options, model=model, pipelines=pipelines)
        return [contender("float", None), contender("w4a8", 0.28)]

    monkeypatch.setattr(qcompiler, "compare", compare, raising=False)
    monkeypatch.setattr("qcompiler.commands.compare.check_found", lambda name: None)
    return seen


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("some text")
    return file


def test_tables(asked: dict[str, Any], text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "m", "--pipelines", "w4a8", "w8a8", "--text", str(text), "-q"]
    assert main(command) == 0
    assert asked["pipelines"] == ("w4a8", "w8a8")
    assert asked["text"] == "some text"
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    row = "w4a8 90.0 MB 4.50 20.085 16.44 … 24.53 0.28000 75.0% +0.1000 more than noise 2000 300"
    assert f"{row} 200.0 MB 1 min 5 s 1.2 GB" in lines
    assert "0.5 25.0% 87.5% 0.2800 25.0% 87.5%" in lines


def test_json(asked: dict[str, Any], text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "m", "w4a8", "--text", str(text), "--json", "-q"]) == 0
    reference, four = json.loads(capsys.readouterr().out)["pipelines"]
    assert reference["evaluation"]["kl"] is None
    assert four["evaluation"]["comparison"]["verdict"] == "more than noise"
    assert four["temperatures"] == [
        {"temperature": 0.5, "kl": 0.28, "repeated": 0.25, "distinct": 0.875}
    ]


def test_without_temperatures(
    asked: dict[str, Any], text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "m", "w4a8", "--text", str(text), "--no-temperatures", "-q"]) == 0
    assert asked["temperatures"] == ()
    assert "temperature" not in capsys.readouterr().out


def test_the_picture_has_a_chart_for_each_question(
    asked: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    drawn = tmp_path / "compared.svg"
    assert main(["compare", "m", "w4a8", "--text", str(text), "--picture", str(drawn), "-q"]) == 0
    charts = ElementTree.parse(drawn).getroot().findall("{*}svg")
    bars = [len(chart.findall("{*}rect")) for chart in charts]
    assert bars == [1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "missing.txt"], "missing.txt"),
        (["--text", "{text}", "--picture", "a.jpg"], "end the name with .svg or .png"),
        (["--text", "{text}", "--samples", "4"], "samples would not be used"),
    ],
)
def test_mistakes_are_found_at_the_start(
    arguments: list[str],
    says: str,
    asked: dict[str, Any],
    text: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(text=text) for argument in arguments]
    assert main(["compare", "m", "w4a8", *given, "-q"]) != 0
    assert not asked
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
