"""What was handed over is sorted out, and mistakes are found without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.calibration_source import Inputs, Tensors, Texts, read_source
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import UsageError

TOKENS = torch.arange(6)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.txt"
    path.write_text("one\ntwo\n")
    return path


def test_a_text_by_itself_names_a_file(file: Path) -> None:
    expected = Texts(documents=("one\ntwo\n",), lines=True, name="wiki.txt")
    assert read_source(file) == read_source(str(file)) == read_source([file]) == expected


def test_texts_and_files_go_together(file: Path) -> None:
    found = read_source(["a text", file, "another"])
    assert found == Texts(
        documents=("a text", "one\ntwo\n", "another"), lines=False, name="wiki.txt and 2 texts"
    )
    assert read_source(["a text"]) == Texts(documents=("a text",), lines=False, name="1 text")


def test_many_files_are_counted(file: Path) -> None:
    assert read_source([file] * 4).name == "4 files"  # type: ignore[union-attr]


def test_tensors_and_tuples() -> None:
    one, several, inputs = (
        read_source(TOKENS),
        read_source([TOKENS, TOKENS]),
        read_source([(TOKENS, TOKENS), (TOKENS, TOKENS)]),
    )
    assert isinstance(one, Tensors)
    assert one.name == "tokens [6]"
    assert isinstance(several, Tensors)
    assert len(several.tensors) == 2
    assert isinstance(inputs, Inputs)
    assert (len(inputs.samples), inputs.name) == (2, "2 sets of inputs")


def test_samples_that_are_made_stay_as_they_are() -> None:
    made = Calibration(samples=((TOKENS,),), source="mine")
    assert read_source(made) is made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "an empty list; give at least one text"),
        (Path("no/such.txt"), "there is no text file no/such.txt"),
        ("no such.txt", "there is no text file no such.txt"),
        (["", " \n"], "the calibration texts are empty"),
        (7, "the calibration is an int; give text files"),
        (np.arange(5), "the calibration is a ndarray; give text files"),
        ([TOKENS, "text"], "entry 1 of the calibration is a str; give text files"),
        ([3, 4], "entry 0 of the calibration is an int; give text files"),
        ([TOKENS, np.arange(5)], "entry 1 of the calibration is a ndarray"),
        ([()], "entry 0 of the calibration is a tuple"),
        (Calibration(samples=(), source="nothing"), "the calibration has no samples"),
    ],
)
def test_what_nothing_can_be_calibrated_on(given: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_source(given)
    assert message in str(caught.value)


def test_the_name_of_a_file_in_a_list_is_no_text(file: Path) -> None:
    with pytest.raises(UsageError, match=r"is the name of a file; write Path\('.*wiki.txt'\)"):
        read_source([str(file)])
