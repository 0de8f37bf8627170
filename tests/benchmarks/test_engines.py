"""The comparison with other engines: what is asked for, left out, summed up and drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """Import scripts as they import each other, and leave no trace of them."""
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "engine_workers")]
    yield import_module
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def engine_list(load: Any) -> ModuleType:
    found: ModuleType = load("engine_list")
    return found


@pytest.fixture
def results(load: Any) -> ModuleType:
    found: ModuleType = load("engine_results")
    return found


def measured(prefill: list[float], decode: list[float], first: float, memory: int) -> Any:
    rates = {"prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode}
    return {"contexts": {"512": rates}, "first_token_s": first, "peak_memory_bytes": memory}


ROUNDS = [
    measured([100.0, 90.0], [10.0, 8.0], 2.0, 5_000_000),
    measured([70.0, 80.0], [12.0, 9.0], 1.0, 4_000_000),
]


def test_a_summary_is_of_all_repeats_of_all_rounds(results: ModuleType) -> None:
    found = results.summarise(ROUNDS)
    assert found["contexts"]["512"]["prefill_tokens_per_s"] == {"best": 100.0, "median": 85.0}
    assert found["contexts"]["512"]["decode_tokens_per_s"] == {"best": 12.0, "median": 9.5}
    assert found["first_token_s"] == {"best": 1.0, "median": 1.5}
    assert found["peak_memory_bytes"] == 5_000_000


def test_the_table_shows_best_and_median(results: ModuleType) -> None:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(results.table({"qcompiler w4a8": results.summarise(ROUNDS)}, "a model"))
    (row,) = (line for line in shown.get().splitlines() if "qcompiler" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["qcompiler w4a8", "100 (85)", "12.0 (9.5)", "1.0 (1.5)", "5 MB"]


def test_the_picture_has_two_charts_that_do_not_overlap(results: ModuleType) -> None:
    summaries = {name: results.summarise(ROUNDS) for name in ("qcompiler w4a8", "torch float32")}
    root = ElementTree.fromstring(results.picture({"a model": summaries}))
    first, second = root.findall("{*}svg")
    assert int(second.attrib["y"]) == int(first.attrib["height"])
    assert int(root.attrib["height"]) == int(second.attrib["y"]) + int(second.attrib["height"])
    said = [text.text for text in second.iter("{http://www.w3.org/2000/svg}text")]
    assert "a model: decode after 512 tokens, tokens/s" in said
    assert said.count("12") == 2


def test_engines_are_chosen_by_globs(engine_list: ModuleType) -> None:
    names = [engine.name for engine in engine_list.chosen("torch float32, qcompiler w?a8")]
    assert names == ["qcompiler w4a8", "qcompiler w8a8", "torch float32"]


def test_a_name_that_no_engine_has(engine_list: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no engine is called 'llama'; there are: qcompiler w4a8"):
        engine_list.chosen("qcompiler*,llama")


def test_a_missing_rival_is_left_out_with_the_command_that_installs_it(
    engine_list: ModuleType,
) -> None:
    absent = engine_list.Family(
        name="rival",
        worker="none.py",
        variants=("one", "two"),
        source="folder",
        modules=("json", "no_such_engine"),
        install="pip install no-such-engine",
    )
    (there,) = engine_list.chosen("torch float32")
    engines = [there, *(engine_list.Engine(absent, variant) for variant in absent.variants)]
    said: list[str] = []
    pythons = {"torch": sys.executable, "rival": sys.executable}
    assert engine_list.present(engines, pythons, said.append) == [there]
    assert said == ["rival is left out; install it with: pip install no-such-engine"]


def test_a_python_that_is_not_there(engine_list: ModuleType) -> None:
    (rival,) = engine_list.chosen("openvino int4")
    with pytest.raises(SystemExit, match=r"^--openvino /none/python cannot be run: No such file"):
        rival.family.is_installed("/none/python")


def test_options(load: Any) -> None:
    read = load("engines").read_options
    found = read(["--contexts", "512,2048", "--threads", "1,2", "--shape", "1b"])
    assert (found.contexts, found.threads, found.shape) == ([512, 2048], [1, 2], "1b")
    assert vars(read([]))["llama.cpp"] == sys.executable
    assert vars(read(["--llama-cpp", "/other/python"]))["llama.cpp"] == "/other/python"


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--contexts", "512,0"]])
def test_counts_that_measure_nothing(
    load: Any, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load("engines").read_options(wrong)
    assert f"argument {wrong[0]}: '{wrong[1]}' has a number that is less than 1" in (
        capsys.readouterr().err
    )


def test_what_is_made_is_whole_or_not_there(load: Any, tmp_path: Path) -> None:
    files = load("engine_models").ModelFiles("smollm2-135m", None, tmp_path, lambda text: None)
    target = tmp_path / "made"
    write = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('half'); "
    with pytest.raises(SystemExit, match=r"made could not be made:\n(.|\n)*no room"):
        files.made(target, [sys.executable, "-c", write + "sys.exit('no room')"])
    assert not target.exists()
    assert files.made(target, [sys.executable, "-c", write]).read_text() == "half"


def test_a_worker_tells_its_own_peak_of_memory(load: Any, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t   12 kB\nVmRSS:\t 10 kB\n")
    assert load("clock").peak_memory(status) == 12 * 1024


def test_the_clock_counts_tokens_and_warms_up(load: Any) -> None:
    clock = load("clock")
    asked: list[tuple[int, int]] = []

    class Fake:
        def run(self, prompt: list[int], count: int) -> tuple[float, float]:
            asked.append((len(prompt), count))
            return 2.0, 4.0

    found = clock.measure(Fake(), [16, 32], generate=8, repeats=1, started=0.0)
    assert asked == [(clock.SHORT, 0), (16, 4), (16, 8), (32, 4), (32, 8)]
    assert found["contexts"]["32"] == {
        "prefill_tokens_per_s": [16.0],
        "decode_tokens_per_s": [2.0],
    }


def test_rows_are_reordered_as_llama_cpp_turns_them(load: Any) -> None:
    """Pairs (i, i + d / 2) of a head become neighbours (2 i, 2 i + 1)."""
    rows = torch.arange(16).reshape(16, 1)
    found = load("make_gguf").interleaved(rows, heads=2).flatten().tolist()
    assert found == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
