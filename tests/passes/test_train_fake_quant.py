"""Training lowers the loss, goes on from where it stopped, and never leaves less than it found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from passes import block_training, training_memory, whole_training
from passes.fake_graph import fake_weights
from passes.freeze_fake_quant import FreezeFakeQuant
from passes.segments import SegmentWeights
from passes.train_fake_quant import TrainFakeQuant
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.progress import NoProgress
from tests.passes.fake_programs import TARGET, fake_llama, run, samples

SHORT = TrainFakeQuant(
    block_steps=6, steps=12, batch=2, scale_rate=5e-3, learning_rate=1e-3, patience=100
)


def learned(program: Program) -> dict[str, torch.Tensor]:
    fact: FakeQuantization = program.facts[FakeQuantization]
    return {name: program.weights.tensor(name) for name in fact.trainable}


class Stopped(Exception):
    """Stands for Ctrl-C."""


class StopAfter(NoProgress):
    """Stops a run after so many reports of progress."""

    def __init__(self, reports: int) -> None:
        self.left = reports
        self.told: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        yield

    def advance(self, done: int, total: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped

    def tell(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.parametrize("learn", ["scales", "low-rank", "weights"])
@pytest.mark.parametrize("loss", ["distill", "cross-entropy", "both"])
def test_the_loss_falls(learn: str, loss: str) -> None:
    program = fake_llama("w2a8g16", learn=learn)  # type: ignore[arg-type]
    step = TrainFakeQuant(
        block_steps=12,
        steps=24,
        batch=2,
        scale_rate=5e-3,
        learning_rate=3e-4,
        block_learning_rate=1e-3,
        loss=loss,  # type: ignore[arg-type]
    )
    found = run(program, step).records["train-fake-quant"]
    assert all(block["after"] <= block["before"] for block in found["blocks"])
    assert found["blocks"][0]["after"] < found["blocks"][0]["before"]
    assert found["whole"]["after"] <= found["whole"]["before"]
    assert len(found["curves"]) == len(found["blocks"]) == 2


def test_hidden_states_and_bf16_and_recomputing_train_too() -> None:
    plain, frugal = fake_llama("w3a8g16"), fake_llama("w3a8g16")
    step = {"block_steps": 0, "steps": 6, "scale_rate": 5e-3}
    first = run(plain, TrainFakeQuant(**step, hidden=0.5))  # type: ignore[arg-type]
    again = run(frugal, TrainFakeQuant(**step, hidden=0.5, recompute=True))  # type: ignore[arg-type]
    for name, value in learned(plain).items():
        assert torch.equal(value, learned(frugal)[name]), name
    curves = [c.records["train-fake-quant"]["whole"]["curve"] for c in (first, again)]
    assert curves[0] == curves[1]
    halved = fake_llama("w3a8g16")
    found = run(halved, TrainFakeQuant(**step, bf16=True)).records  # type: ignore[arg-type]
    half = found["train-fake-quant"]["whole"]
    assert half["after"] < half["before"]


def test_the_same_run_gives_the_same_bits() -> None:
    one, other = fake_llama(learn="weights"), fake_llama(learn="weights")
    run(one, SHORT)
    torch.manual_seed(5)
    run(other, SHORT)
    for name, value in learned(one).items():
        assert torch.equal(value, learned(other)[name]), name


@pytest.mark.parametrize("reports", [2, 7, 13, 17, 20])
def test_it_goes_on_to_the_same_numbers(
    reports: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_training, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(block_training, "KEEP_EVERY", 0.0)

    def context(progress: Any) -> PassContext:
        return PassContext(target=TARGET, calibration=samples(), work=tmp_path, progress=progress)

    whole = fake_llama(learn="low-rank")
    expected = run(whole, SHORT).records["train-fake-quant"]
    stopped = fake_llama(learn="low-rank")
    with pytest.raises(Stopped):
        run(stopped, SHORT, context=context(StopAfter(reports)))
    again, watcher = fake_llama(learn="low-rank"), StopAfter(1000)
    found = run(again, SHORT, context=context(watcher)).records["train-fake-quant"]
    assert found == expected
    for name, value in learned(whole).items():
        assert torch.equal(value, learned(again)[name]), name
    if reports > 6:
        assert "going on after" in watcher.told[0]


def test_another_text_begins_anew(tmp_path: Path) -> None:
    run(
        fake_llama(),
        SHORT,
        context=PassContext(target=TARGET, calibration=samples(), work=tmp_path),
    )
    folders = set(tmp_path.iterdir())
    other = PassContext(target=TARGET, calibration=samples(18), work=tmp_path)
    run(fake_llama(), SHORT, context=other)
    assert len(set(tmp_path.iterdir()) - folders) == 1


def test_a_rate_that_diverges_ends_training_and_leaves_the_best() -> None:
    program = fake_llama(learn="weights", start="search")
    before = {w.name: w.value(SegmentWeights(program)) for w in fake_weights(program)}
    step = TrainFakeQuant(block_steps=0, steps=16, learning_rate=1.0, scale_rate=1.0)
    context = run(program, step)
    found = context.records["train-fake-quant"]["whole"]
    assert found["steps"] < 16
    assert found["after"] <= found["before"]
    (note,) = context.notes["train-fake-quant"]
    assert "diverged" in note
    assert "is kept" in note
    if found["best"] == 0:
        after = {w.name: w.value(SegmentWeights(program)) for w in fake_weights(program)}
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    run(program, FreezeFakeQuant())


def test_training_ends_when_nothing_is_gained() -> None:
    program = fake_llama()
    step = TrainFakeQuant(
        block_steps=0, steps=64, scale_rate=0.0, checks=8, patience=2, loss="distill"
    )
    context = run(program, step)
    assert context.records["train-fake-quant"]["whole"]["steps"] == 16
    assert "has not fallen since step 0" in context.notes["train-fake-quant"][0]


def test_damaged_weights_are_said_before_training() -> None:
    program = fake_llama()
    name = "model.layers.0.mlp.up_proj.weight_scale"
    program.weights.put(name, program.weights.tensor(name) * float("nan"))
    with pytest.raises(QCompilerError, match="damaged weights"):
        run(program, SHORT)


def test_too_little_memory_is_said_with_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake_llama(learn="weights")
    tokens = 24
    whole = training_memory.whole_bytes(program, tokens, recompute=False)
    frugal = training_memory.whole_bytes(program, tokens, recompute=True)
    assert training_memory.block_bytes(program, tokens) <= frugal < whole
    monkeypatch.setattr(training_memory, "available_memory", lambda: whole - 1)
    with pytest.raises(QCompilerError, match=r"recompute = true takes .* GB"):
        run(program, SHORT)
    monkeypatch.setattr(training_memory, "available_memory", lambda: 1)
    with pytest.raises(QCompilerError, match="shorter samples take less") as raised:
        run(program, SHORT)
    assert "recompute" not in str(raised.value)


def test_nothing_to_learn_is_noted() -> None:
    program = fake_llama("w4a8g32", learn="weights", scales="range")
    program.facts[FakeQuantization] = FakeQuantization(
        trainable=(), scales=frozenset(), float_weights=program.weights.copy()
    )
    context = run(program, SHORT)
    assert "nothing is left to learn" in context.notes["train-fake-quant"][0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0, "block_steps": 0}, "trains nothing"),
        ({"steps": -1}, "steps is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"learning_rate": 2.0}, "learning_rate is 2"),
        ({"warmup": 1.0}, "warmup is 1"),
        ({"hidden": -0.5}, "cannot be negative"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TrainFakeQuant(**options)


def test_samples_that_are_too_few_to_hold_any_out_are_used_for_both() -> None:
    few = Calibration(samples=samples().samples[:3], source="few")
    program = fake_llama("w3a8g16")
    context = PassContext(target=TARGET, calibration=few)
    found = run(program, SHORT, context=context).records["train-fake-quant"]
    assert found["whole"]["after"] <= found["whole"]["before"]
