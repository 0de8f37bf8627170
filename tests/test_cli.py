"""The command line as a person meets it: what it passes on, what it prints, how it ends."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import qcompiler
from qcompiler import cli
from qcompiler.core.errors import ArtifactError, CaptureError, ConfigError, UsageError
from qcompiler.presets import preset_names

ROOT = Path(__file__).parent.parent
COMMANDS = ("bench", "compile", "evaluate", "inspect", "passes", "pipelines", "plan", "run")
COMMANDS += ("compare", "export", "generate-text", "targets")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stand in for `qcompiler.api` and `qcompiler.benchmark`: tests put functions into it."""
    module = ModuleType("qcompiler.api")
    for name in ("qcompiler.api", "qcompiler.benchmark"):
        monkeypatch.setitem(sys.modules, name, module)
    # The models that these tests name need not be there.
    for command in ("compile", "evaluate"):
        monkeypatch.setattr(f"qcompiler.commands.{command}.check_found", lambda name: None)
    return module


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*arguments: object, **options: object) -> None:
        raise error

    return function


# --- help and wrong usage ---------------------------------------------------------------------


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr()
    listed = [line.split()[0] for line in shown.out.split("Commands:\n")[1].splitlines()]
    assert sorted(listed) == sorted(COMMANDS)
    assert shown.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Usage: qcompiler {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{qcompiler.__version__}\n"


def test_without_a_command_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: qcompiler" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cmopile"], "No such command 'cmopile'. Did you mean 'compile'?"),
        (["compile"], "Missing argument 'MODEL'"),
        (["compile", "model"], "Missing option '--output' / '-o'"),
        (["run", "out", "--promt", "x"], "No such option: --promt"),
        (["run", "out", "--top-p", "much"], "Invalid value for '--top-p'"),
        (["bench", "out", "--threads", "none"], "Invalid value for '--threads'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


# --- how it ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CaptureError("the model has no weights"), 1),
        (ArtifactError("the artifact is damaged"), 1),
        (UsageError("that is no way to ask"), 2),
        (ConfigError("unknown option 'x'"), 2),
    ],
)
def test_a_users_mistake_is_one_line(
    error: Exception, status: int, api: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    api.bench = raising(error)  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == status
    assert capsys.readouterr() == ("", f"error: {error}\n")


def test_a_bug_shows_its_traceback(api: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    api.bench = raising(IndexError("tuple index out of range"))  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "IndexError: tuple index out of range" in shown
    assert shown.splitlines()[-1].startswith("error: this is a bug in qcompiler; please report")


def test_a_full_disk_is_one_line(api: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/model.so")
    api.bench = raising(error)  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == 1
    assert capsys.readouterr().err == "error: /out/model.so: No space left on device\n"


def test_a_missing_file_of_our_own_is_a_bug(
    api: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    api.bench = raising(FileNotFoundError(errno.ENOENT, "No such file"))  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_too_little_memory_is_one_line(api: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    api.bench = raising(MemoryError())  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == 1
    assert capsys.readouterr().err == "error: there is not enough memory for this\n"


def test_ctrl_c_says_interrupted(api: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    api.bench = raising(KeyboardInterrupt())  # type: ignore[attr-defined]
    assert cli.main(["bench", "out"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_missing_compiler_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from qcompiler import cli; cli.entry()"
    (tmp_path / "text").write_text("some text")
    for arguments in (
        ["compile", "smollm2-135m", "-o", str(tmp_path / "out")],
        ["evaluate", "smollm2-135m", "--text", str(tmp_path / "text")],
        ["passes"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "pip install 'qcompiler[compiler]'" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_process_in_order(number: int, tmp_path: Path) -> None:
    """The child writes a file and takes it away in a `finally`, as the compiler does."""
    script = f"""
import sys, types, pathlib, time
from qcompiler import cli
api = types.ModuleType("qcompiler.benchmark")
def bench(*a, **k):
    file = pathlib.Path({str(tmp_path / "partial")!r})
    try:
        file.write_text("half")
        while True:
            time.sleep(0.01)
    finally:
        file.unlink()
api.bench = bench
sys.modules["qcompiler.benchmark"] = api
sys.argv = ["qcompiler", "bench", "out"]
cli.entry()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "partial").exists():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == (130 if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert err == ("interrupted\n" if number == signal.SIGINT else "")
    assert not (tmp_path / "partial").exists()


def test_a_closed_pipe_ends_quietly() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "from qcompiler import cli; cli.entry()", "targets"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait(60) == 1


# --- what each command passes on and prints ----------------------------------------------------


NO_CALIBRATION = {
    "calibration": None,
    "samples": None,
    "sequence_length": None,
    "seed": 0,
    "max_ram": None,
}


def test_compile_passes_its_options_on(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def fake(model: str, **options: Any) -> None:
        seen.update(options, model=model)
        with options["progress"].step("capture"):
            options["output"].mkdir()
            (options["output"] / "manifest.json").write_text("{}")
            operators = {"layers.0.up": {"shape": [8, 8], "bits_per_weight": 4.5}}
            report = {"operators": operators | {"head": {"shape": [8, 8], "bits_per_weight": 8.5}}}
            (options["output"] / "report.json").write_text(json.dumps(report))
            steps = [[f"pass-{seconds}", seconds] for seconds in (1, 200, 3, 4, 5, 6)]
            (options["output"] / "times.json").write_text(json.dumps({"steps": steps}))

    api.compile = fake  # type: ignore[attr-defined]
    out = tmp_path / "out.qc"
    arguments = ["compile", "model.gguf", "-o", str(out), "--target", "x86-64-v3"]
    arguments += ["--pipeline", "w8a8", "--set", 'set-bits.rules=[{pattern="*",scheme="w8a8"}]']
    arguments += [
        "--set",
        "legalize.widen=true",
        "--context",
        "512",
        "--dump",
        str(tmp_path / "dump"),
    ]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}\n"
    assert "capture: 0.0 s" in shown.err
    summary = [re.split(r"  +", line.strip()) for line in shown.err.splitlines()[-10:]]
    assert summary[0] == ["compiled for", "x86-64-v3"]
    assert ["bits per weight, layers", "4.50"] in summary
    assert ["bits per weight, all", "6.50"] in summary
    assert summary[-5:] == [
        *(["pass-200", "3 min 20 s"], ["pass-6", "6.0 s"], ["pass-5", "5.0 s"]),
        *(["pass-4", "4.0 s"], ["pass-3", "3.0 s"]),
    ]
    del seen["progress"]
    assert seen == {
        "model": "model.gguf",
        "output": out,
        "target": "x86-64-v3",
        "pipeline": "w8a8",
        "settings": ('set-bits.rules=[{pattern="*",scheme="w8a8"}]', "legalize.widen=true"),
        "context": 512,
        "dump": tmp_path / "dump",
        **NO_CALIBRATION,
    }


def test_calibration_is_passed_on(api: ModuleType, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def fake(model: str, **options: Any) -> None:
        seen.update(options)
        options["output"].mkdir()

    api.compile = fake  # type: ignore[attr-defined]
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file in files:
        file.write_text("a few words " * 100)
    arguments = ["compile", "m", "-o", str(tmp_path / "o"), "--pipeline", "w4a8-gptq", "--quiet"]
    arguments += [part for file in files for part in ("--calibration", str(file))]
    arguments += ["--samples", "7", "--sequence-length", "64", "--seed", "5", "--max-ram", "2G"]
    assert cli.main(arguments) == 0
    assert {name: seen[name] for name in NO_CALIBRATION} == {
        "calibration": tuple(files),
        "samples": 7,
        "sequence_length": 64,
        "seed": 5,
        "max_ram": 2 * 10**9,
    }


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_interrupted_compilation_says_that_it_can_go_on(
    kept: bool,
    error: BaseException,
    api: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / ".out.qc.work"
    work.mkdir()

    def fake(model: str, **options: Any) -> None:
        if kept:
            (work / "block-0").touch()
        raise error

    api.compile = fake  # type: ignore[attr-defined]
    assert cli.main(["compile", "m", "-o", str(tmp_path / "out.qc")]) in (1, 130)
    shown = capsys.readouterr().err
    sentence = f"finished blocks are kept in {work}; the same command goes on from there\n"
    assert (sentence in shown) == kept


def test_compile_takes_the_target_of_the_pipeline(api: ModuleType, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def fake(model: str, **options: Any) -> None:
        seen.update(options)
        options["output"].mkdir()

    api.compile = fake  # type: ignore[attr-defined]
    file = tmp_path / "mine.toml"
    file.write_text('target = "x86-64-v3"\n[[pass]]\nname = "legalize"\n')
    arguments = ["compile", "m", "-o", str(tmp_path / "o"), "--pipeline", str(file), "--quiet"]
    assert cli.main(arguments) == 0
    assert seen["target"] == "x86-64-v3"


@pytest.mark.parametrize(
    ("options", "message", "status"),
    [
        (["--pipeline", "w4a9"], "unknown pipeline 'w4a9'; did you mean 'w4a8'?", 2),
        (["--pipeline", "mine.toml"], "mine.toml: cannot read the pipeline: No such file", 2),
        (["--target", "x86-64-v5"], "unknown target 'x86-64-v5'; did you mean 'x86-64-v", 2),
        (["--set", "quantize-rnt.x=1"], "unknown pass 'quantize-rnt'; did you mean 'quantize-", 2),
        (["--set", "nonsense"], "write PASS.OPTION=VALUE", 2),
        (["--calibration", "no/text.txt"], "there is no text file no/text.txt", 2),
        (["--max-ram", "much"], "--max-ram much: write a size such as 2G or 512M", 2),
        (["--samples", "0"], "Invalid value for '--samples'", 2),
        (["--seed", "-1"], "Invalid value for '--seed'", 2),
        (["-o", "/no/such/folder/out"], "the folder /no/such/folder does not exist", 1),
    ],
)
def test_compile_finds_mistakes_before_it_loads_anything(
    options: list[str],
    message: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "qcompiler.api", None)
    assert cli.main(["compile", "m", "-o", str(tmp_path / "out"), *options]) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compile", "evaluate"])
def test_samples_that_no_pass_asks_for_are_refused(
    command: str, tmp_path: Path, api: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("a text")
    other = ["-o", "out"] if command == "compile" else ["--text", str(tmp_path / "text")]
    assert cli.main([command, "m", *other, "--samples", "3"]) == 2
    assert "no pass of this pipeline runs the model on samples" in capsys.readouterr().err


def test_compile_leaves_what_is_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "qcompiler.api", None)
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert cli.main(["compile", "m", "-o", str(tmp_path)]) == 1
    assert "holds something other than an artifact" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


EVALUATION = SimpleNamespace(
    nll=3.25,
    nll_error=0.02,
    nll_interval=(3.21, 3.29),
    perplexity=25.79,
    perplexity_interval=(24.8, 26.8),
    tokens=63,
    blocks=12,
    kl=None,
    top1_agreement=None,
    comparison=None,
    texts={},
)
COMPARISON = SimpleNamespace(
    nll_difference=0.0314,
    nll_difference_error=0.002,
    interval=(0.027, 0.0358),
    reference_nll=3.2186,
    reference_perplexity=24.99,
    kl_interval=(0.01, 0.02),
    verdict="more than noise",
)


def like(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(EVALUATION), **changes})


def test_evaluate_json_has_exactly_these_keys(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def fake(model: str, **options: Any) -> SimpleNamespace:
        seen.update(options, model=model)
        return EVALUATION

    api.evaluate = fake  # type: ignore[attr-defined]
    (tmp_path / "text").write_text("Zwölf Boxkämpfer")
    arguments = ["evaluate", "out.qc", "--text", str(tmp_path / "text"), "--json", "--tokens", "64"]
    assert cli.main([*arguments, "--reference", "m.gguf", "--window", "32"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "nll": 3.25,
        "perplexity": 25.79,
        "tokens": 63,
        "kl": None,
        "top1_agreement": None,
    }
    del seen["progress"]
    assert seen == {
        "model": "out.qc",
        "text": "Zwölf Boxkämpfer",
        "reference": "m.gguf",
        "pipeline": None,
        "reference_pipeline": None,
        "tokens": 64,
        "window": 32,
        **NO_CALIBRATION,
    }


def test_evaluate_prints_what_there_is(
    api: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = like(kl=0.0123, top1_agreement=0.912, comparison=COMPARISON)
    api.evaluate = lambda *a, **k: found  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"some text")))
    assert cli.main(["evaluate", "out.qc", "--text", "-"]) == 0
    shown = capsys.readouterr().out
    assert re.search("perplexity +25.790", shown)
    assert "± 0.0200" in shown
    assert "24.800 … 26.800" in shown
    assert re.search(r"0\.01230 +0\.01000 … 0\.02000", shown)
    assert "91.2%" in shown
    rise = next(line for line in shown.splitlines() if line.startswith("rise over the reference"))
    assert re.search(r"\+0\.0314 +\+0\.0270 … \+0\.0358 +nats per token, more than noise", rise)


def test_evaluate_tells_several_texts_apart(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for name in names:
        Path(name).write_text(f"text of {name}")
    each = like(kl=0.0123, top1_agreement=0.912, comparison=COMPARISON, tokens=21)
    found = like(**{**vars(each), "tokens": 42, "texts": dict.fromkeys(names, each)})

    def fake(model: str, **options: Any) -> SimpleNamespace:
        seen.update(options)
        return found

    api.evaluate = fake  # type: ignore[attr-defined]
    command = ["evaluate", "out.qc", "--text", names[0], "--text", names[1], "--reference", "o"]
    assert cli.main(command) == 0
    assert seen["text"] == {name: f"text of {name}" for name in names}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["text", *names, "all"]
    assert [line.split()[1] for line in lines[1:]] == ["21", "21", "42"]
    assert all(line.endswith("more than noise") for line in lines[1:])
    assert cli.main([*command, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["tokens"] == 42
    assert list(shown["texts"]) == names
    assert shown["texts"][names[0]]["comparison"]["verdict"] == "more than noise"
    assert cli.main([*command, "--text", names[0]]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_intervals_are_added_to_json_on_request(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = (float("-inf"), float("inf"))
    api.evaluate = lambda *a, **k: like(nll_interval=endless, comparison=COMPARISON)  # type: ignore[attr-defined]
    (tmp_path / "text").write_text("x")
    command = ["evaluate", "o", "--text", str(tmp_path / "text"), "--json", "--intervals"]
    assert cli.main(command) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["nll_interval"] == [None, None]  # one block: nothing is known
    assert shown["perplexity_interval"] == [24.8, 26.8]
    assert shown["comparison"]["interval"] == [0.027, 0.0358]
    assert "texts" not in shown


def test_infinite_perplexity_is_null_in_json(
    api: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = like(perplexity=float("inf"))
    api.evaluate = lambda *a, **k: found  # type: ignore[attr-defined]
    (tmp_path / "text").write_text("x")
    assert cli.main(["evaluate", "o", "--text", str(tmp_path / "text"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b" \n", "there is no text in it"),
    ],
)
def test_evaluate_needs_text(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    assert cli.main(["evaluate", "o", "--text", str(tmp_path / "text")]) == 2
    assert message in capsys.readouterr().err


BENCH = SimpleNamespace(
    prefill_tokens_per_s=1480.4,
    decode_tokens_per_s=155.25,
    time_to_first_token_s=0.345,
    peak_memory_bytes=300_000_000,
    weight_bytes=90_000_000,
    stream_bytes_per_s=1.4e10,
    limits=None,
    functions=[],
)


def test_bench_json_has_exactly_these_keys(
    api: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def fake(path: Path, **options: Any) -> SimpleNamespace:
        seen.update(options, path=path)
        return BENCH

    api.bench = fake  # type: ignore[attr-defined]
    assert cli.main(["bench", "out.qc", "--threads", "2", "--repeats", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == vars(BENCH)
    assert seen == {
        "path": Path("out.qc"),
        "prompt_tokens": 512,
        "generate_tokens": 128,
        "threads": 2,
        "repeats": 9,
    }


def test_bench_prints_units(api: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    api.bench = lambda *a, **k: BENCH  # type: ignore[attr-defined]
    assert cli.main(["bench", "out.qc"]) == 0
    shown = capsys.readouterr().out
    for text in ("1480 tokens/s", "155.2 tokens/s", "345 ms", "300.0 MB", "90.0 MB", "14.0 GB/s"):
        assert text in shown


def test_targets_say_where_they_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qcompiler.commands import lists
    from targets import find

    features = find("x86-64-v3").features | {"avx512f"}
    monkeypatch.setattr(lists, "cpu_features", lambda: features)
    assert cli.main(["targets"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "native" in lines["x86-64-v3"]
    assert "no: lacks avx512_vnni avx512bw avx512cd avx512dq avx512vl" in lines["x86-64-v4-vnni"]
    assert "with a GPU of compute capability 8.0 or more" in lines["cuda-sm80"]


def test_pipelines_are_listed_with_their_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pipelines"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {"pipeline", *preset_names()}
    assert "set-bits, quantize-rtn" in lines["w4a8"]
    assert "set-bits" not in lines["float"]


def test_passes_are_listed_with_stages_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    passes = pytest.importorskip("passes")
    assert cli.main(["passes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() >= {step.name for step in passes.PASSES}
    assert "→ quantized" in lines["quantize-rtn"]
    assert "rules:" in lines["set-bits"]


# --- speed ------------------------------------------------------------------------------------


def test_help_is_instant_and_loads_no_compiler() -> None:
    code = (
        "import sys\nfrom qcompiler import cli\ncli.main(['compile', '--help'])\n"
        "heavy = {'torch', 'tvm', 'transformers', 'numpy', 'rich', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    # Time of the processor, and of several tries the least: other programs run on this machine.
    best = min(_seconds(["-m", "qcompiler.cli", "--help"]) for _ in range(5))
    assert best < 0.3


def _seconds(arguments: list[str]) -> float:
    """Return the processor time that a Python process takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
