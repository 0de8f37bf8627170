"""Compiling with a pass that calibrates: what is reported, kept, and gone on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

pytest.importorskip("tvm")

import qcompiler
from qcompiler.core.errors import UsageError
from qcompiler.work_folder import has_work, work_folder
from tests.families import tiny_model

pytestmark = [pytest.mark.tvm, pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = " ".join(f"sentence {i} of many" for i in range(400))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model("llama")
    # Those of a real vocabulary, which this one is too small for.
    model.config.bos_token_id = model.config.eos_token_id = None
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    letters = {text: i for i, text in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))


class Watcher:
    """Records what is told, and stops a run after so many steps forward inside the pass."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.told: list[str] = []
        self._left = stop_after
        self._open: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()

    def advance(self, done: int, total: int) -> None:
        # After the second time that a block is said to be done, the first one is kept.
        if self._left is None or self._open != ["quantize-gptq"] or done % 100 or not done:
            return
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def tell(self, text: str) -> None:
        self.told.append(text)


def compile_to(out: Path, model: Path, progress: Watcher, max_ram: int | None = None) -> bytes:
    """Compile to `out` with GPTQ on all of the text; return the weights."""
    qcompiler.compile(
        model,
        output=out,
        pipeline="w4a8-gptq",
        calibration=[TEXT],
        samples=500,
        sequence_length=64,
        max_ram=max_ram,
        progress=progress,
    )
    return (out / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def compiled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watcher]:
    out, watcher = tmp_path_factory.mktemp("compiled") / "out.qc", Watcher()
    compile_to(out, model, watcher)
    return out, watcher


def test_the_report_says_what_it_was_calibrated_on(compiled: tuple[Path, Watcher]) -> None:
    out, watcher = compiled
    report = json.loads((out / "report.json").read_text())
    pieces = len(TEXT) // 64
    facts = {key: report["calibration"][key] for key in ("source", "generated", "samples")}
    assert facts == {"source": "1 text", "generated": False, "samples": pieces}
    shortage = f"1 text gives {pieces} samples; 500 were wanted"
    assert report["notes"]["calibration"] == watcher.told == [shortage]
    assert [path.name for path in out.parent.iterdir()] == ["out.qc"]


def test_without_a_text_the_report_says_that_the_model_wrote_it(
    model: Path, tmp_path: Path
) -> None:
    artifact = qcompiler.compile(model, pipeline="w4a8-gptq", samples=6, sequence_length=24, seed=3)
    facts = json.loads((artifact.path / "report.json").read_text())["calibration"]
    assert facts["generated"]
    assert facts["source"] == "text that the model wrote itself (seed 3)"
    assert (facts["samples"], facts["tokens"], facts["vocabulary"]) == (6, 144, 256)


def test_an_interrupted_run_goes_on_with_the_same_result(
    model: Path, tmp_path: Path, compiled: tuple[Path, Watcher]
) -> None:
    out = tmp_path / "out.qc"
    with pytest.raises(KeyboardInterrupt):
        compile_to(out, model, Watcher(stop_after=2))
    assert not out.exists()
    assert has_work(work_folder(out))
    again = Watcher()
    # Where activations are kept makes no difference.
    weights = compile_to(out, model, again, max_ram=0)
    assert weights == (compiled[0] / "weights.safetensors").read_bytes()
    assert again.told[-1].startswith("going on after ")
    assert [path.name for path in tmp_path.iterdir()] == ["out.qc"]


def test_mistakes_are_found_before_capture(model: Path, tmp_path: Path) -> None:
    class NoCapture(Watcher):
        @contextmanager
        def step(self, name: str) -> Iterator[None]:
            raise AssertionError(name)
            yield

    (tmp_path / "tiny.txt").write_text("too little")
    for calibration, message in (
        (tmp_path / "no.txt", "there is no text file"),
        (tmp_path / "tiny.txt", r"tiny\.txt has 10 bytes, which is too little to calibrate on"),
        ([], "an empty list"),
    ):
        with pytest.raises(UsageError, match=message):
            qcompiler.compile(
                model, pipeline="w4a8-gptq", calibration=calibration, progress=NoCapture()
            )
    linear = torch.nn.Linear(64, 64)
    with pytest.raises(UsageError, match="only a language model can write its own"):
        qcompiler.compile(
            linear,
            example_inputs=(torch.rand(2, 64),),
            pipeline="w4a8-gptq",
            progress=NoCapture(),
        )
    with pytest.raises(UsageError, match="max_ram is '2G'; give a number of bytes"):
        qcompiler.compile(
            model,
            pipeline="w4a8-gptq",
            max_ram="2G",  # type: ignore[arg-type]
            progress=NoCapture(),
        )


def test_evaluation_calibrates_a_pipeline(model: Path) -> None:
    options = {"calibration": [TEXT], "samples": 16, "sequence_length": 32}
    found = qcompiler.evaluate(
        str(model), text=TEXT[:400], pipeline="w4a8-gptq", reference=str(model), **options
    )
    assert found.kl is not None
    assert found.kl > 0
    with pytest.raises(UsageError, match="no pass of this pipeline runs the model on samples"):
        qcompiler.evaluate(str(model), text=TEXT[:400], **options)
