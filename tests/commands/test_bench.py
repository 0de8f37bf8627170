"""What `bench` prints and draws, of times that are made up here."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

import qcompiler
from qcompiler.benchmark import BenchResult
from qcompiler.cli import main
from qcompiler.kernel_table import FunctionTime, KindTime, Limits

PRODUCT = KindTime(
    kind="product w4a8",
    arithmetic="int8",
    calls=120,
    seconds=1e-3,
    bytes=6e7,
    operations=2e8,
    limit_seconds=7.5e-4,
)
QUANTISE = dataclasses.replace(
    PRODUCT, kind="quantise", seconds=1e-5, bytes=0.0, operations=2e5, limit_seconds=1e-6
)
FOUND = BenchResult(
    prefill_tokens_per_s=2000.0,
    decode_tokens_per_s=300.0,
    time_to_first_token_s=0.5,
    peak_memory_bytes=200_000_000,
    weight_bytes=90_000_000,
    stream_bytes_per_s=3e10,
    threads=2,
    limits=Limits(bytes=8e10, int8=2e12, float32=3e11),
    functions=(
        FunctionTime(
            name="decode", tokens=1, context=576, seconds=1.2e-3, kinds=(PRODUCT, QUANTISE)
        ),
    ),
)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcompiler, "bench", lambda *a, **o: FOUND, raising=False)


@pytest.mark.usefixtures("answer")
def test_every_kind_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "out.qc"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "limit: bytes read in order 80.0 GB/s" in lines
    assert "product w4a8 120 1000.0 60.0 MB 200.0 M 75% 250.0" in lines
    assert "quantise 120 10.0 0 B 200.0 k 10% 9.0" in lines
    assert "outside of kernels 190.0" in lines
    assert "total 240 1200.0 60.0 MB 200.2 M 63% 449.0" in lines


@pytest.mark.usefixtures("answer")
def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "out.qc", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["limits"]["int8_ops_per_s"] == 2e12
    (decode,) = printed["functions"]
    assert [kind["kind"] for kind in decode["kinds"]] == ["product w4a8", "quantise"]
    assert decode["total"]["limit_share"] == pytest.approx(0.751 / 1.2)


def test_an_artifact_without_costs_is_timed_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dataclasses.replace(FOUND, limits=None, functions=())
    monkeypatch.setattr(qcompiler, "bench", lambda *a, **o: before, raising=False)
    assert main(["bench", "out.qc"]) == 0
    shown = capsys.readouterr()
    assert "300.0 tokens/s" in shown.out
    assert "compile the model again" in shown.err


@pytest.mark.usefixtures("answer")
def test_a_picture_shows_what_reads_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = SimpleNamespace(limits={"stream": None})
    monkeypatch.setattr("qcompiler.commands.bench.read_manifest", lambda path: manifest)
    file = tmp_path / "roofline.svg"
    assert main(["bench", "out.qc", "--roofline", str(file)]) == 0
    root = ElementTree.fromstring(file.read_text())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "product w4a8" in texts
    assert "quantise" not in texts


def test_a_picture_of_unknown_costs_is_refused_before_anything_is_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = SimpleNamespace(limits={})
    monkeypatch.setattr("qcompiler.commands.bench.read_manifest", lambda path: manifest)
    assert main(["bench", "out.qc", "--roofline", "roofline.svg"]) == 2
    assert "error: --roofline cannot be drawn" in capsys.readouterr().err
