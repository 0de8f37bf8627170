"""Reports are written as JSON and read however damaged they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.report.content import encode, parse, read_report


def test_every_section_is_read(content: dict[str, Any], times: dict[str, Any]) -> None:
    report = parse(content, times)
    (sensitivity,) = report.sensitivities()
    assert sensitivity.step == "measure-sensitivity"
    assert sensitivity.loss["model.layers.0.mlp.up_proj"] == {"w4a8g32": 0.002, "w8a8g32": 1e-5}
    (costs,) = report.costs()
    assert costs.decode.keys() == costs.bytes.keys()
    (allocation,) = report.allocations()
    assert allocation.chosen == allocation.front[1]
    gptq, signround = report.details()
    assert gptq.operators["model.layers.2.mlp.up_proj"].after == 0.05
    assert [block.best for block in signround.blocks] == [7, 7, 7]
    assert report.calibration is not None
    assert report.steps == [("capture", 1.5), ("quantize-gptq", 190.0)]
    assert report.rest() == {"my-pass": {"findings": {"a": 1}}}


@pytest.mark.parametrize(
    ("key", "value"),
    [("loss", 3), ("loss", {"a": [1, 2]}), ("metric", {"not": "a name"})],
)
def test_records_of_another_shape_are_kept_as_they_are(key: str, value: Any) -> None:
    report = parse({"records": {"measure-sensitivity": {key: value}}})
    assert not report.sensitivities()
    assert report.rest() == {"measure-sensitivity": {key: value}}


@pytest.mark.parametrize("name", ["notes", "calibration", "operators", "records", "pipeline"])
def test_a_damaged_part_costs_no_other(name: str, content: dict[str, Any]) -> None:
    report = parse({**content, name: 7})
    whole = parse(content)
    for other in ("notes", "calibration", "operators", "records", "pipeline"):
        if other != name:
            assert getattr(report, other) == getattr(whole, other)
    assert not getattr(report, name)


def test_what_an_older_compiler_wrote_is_a_report() -> None:
    report = parse({"notes": {"fuse-qkv": ["joined"]}, "pipeline": [{"name": "legalize"}]})
    assert report.notes == {"fuse-qkv": ["joined"]}
    assert [*report.sensitivities(), *report.details(), *report.allocations()] == []


def test_files_may_be_missing_or_damaged(tmp_path: Path, content: dict[str, Any]) -> None:
    assert read_report(tmp_path) == parse({})
    (tmp_path / "report.json").write_bytes(encode(content))
    (tmp_path / "times.json").write_text("{")
    assert read_report(tmp_path) == parse(content)
    (tmp_path / "report.json").write_text("[1]")
    assert read_report(tmp_path) == parse({})


def test_numbers_json_cannot_say_are_null() -> None:
    written = encode({"a": [float("inf"), np.float32(0.5), np.int64(3)], "b": {1: float("nan")}})
    assert json.loads(written) == {"a": [None, 0.5, 3], "b": {"1": None}}
