"""What `plan` prints and draws, of a plan that is made up here."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import qcompiler
from qcompiler.allocation_plan import BitPlan
from qcompiler.cli import main
from qcompiler.core.facts import Allocation, PlanPoint

MODEL = "smollm2-135m"


def point(bits: float, loss: float, label: str = "") -> PlanPoint:
    totals = {"bits_per_weight": bits, "bytes": bits * 1e7, "decode_ms": bits}
    return PlanPoint(loss=loss, totals=totals, label=label)


PLAN = BitPlan(
    model="tiny",
    target="x86-64-v3",
    allocation=Allocation(
        plan={"a": "w4a8g64", "b": "w4a8g64", "c": "w8a8g32"},
        loss=0.25,
        bound=0.25,
        gap=0.0,
        totals=point(4.5, 0.25).totals,
        budgets={"bits_per_weight": 4.5},
        prices={"bits_per_weight": 0.5},
        front=(point(4.25, 0.5), point(8.5, 0.01)),
        others=(point(4.25, 0.5, "uniform w4a8g64"), point(6.0, 0.1, "greedy")),
    ),
    times="timer",
    prompt_tokens=512,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Have `qcompiler.plan` answer at once; return what it is asked."""
    seen: list[dict[str, Any]] = []

    def plan(model: str, **options: Any) -> BitPlan:
        seen.append({"model": model, **options})
        return PLAN

    monkeypatch.setattr(qcompiler, "plan", plan, raising=False)
    monkeypatch.setattr("qcompiler.commands.plan.check_found", lambda name: None)
    return seen


def test_the_front_is_a_table_with_the_chosen_plan(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", MODEL, "-q", "--budget", "bits_per_weight=4.5"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["4.250", "42.5", "MB", "4.250", "0.5"]
    assert lines[2] == ["→", "chosen", "4.500", "45.0", "MB", "4.500", "0.25"]
    assert ["uniform", "w4a8g64", "4.250", "42.5", "MB", "4.250", "0.5"] in lines
    text = "\n".join(" ".join(line) for line in lines)
    assert "2 × w4a8g64, 1 × w8a8g32" in text
    assert "one tenth of a bit more saves 0.05 nats per token" in text
    assert "allocate-bits.budget={ bits_per_weight = 4.5 }" in asked[0]["settings"]


def test_json_has_everything(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", MODEL, "-q", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == {
        "bits_per_weight": 4.5,
        "bytes": 4.5e7,
        "decode_ms": 4.5,
        "loss": 0.25,
    }
    assert found["plan"]["c"] == "w8a8g32"
    assert [p["loss"] for p in found["front"]] == [0.5, 0.01]
    assert found["prices"] == {"bits_per_weight": 0.5}


def test_a_picture_is_drawn(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "front.svg"
    assert main(["plan", MODEL, "-q", "--picture", str(file)]) == 0
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"chosen", "uniform w4a8g64", "bits per weight"} <= texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "front.jpg"], "end the name with .svg or .png"),
        (["--picture", "/nowhere/front.svg"], "there is no folder /nowhere"),
        (["--budget", "bits=4"], "unknown budget 'bits'"),
        (["--pipeline", "w8a8"], "has no 'allocate-bits'"),
        (["--calibration", "/nowhere/text.txt"], "/nowhere/text.txt"),
        (["--set", "allocate-bits.allocator='magic'"], "magic"),
        (["--budget", "decode_ms=5", "--set", 'measure-cost.choices=["w4a8g64"]'], "w4a8g32"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(
    asked: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["plan", MODEL, *arguments]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not asked
