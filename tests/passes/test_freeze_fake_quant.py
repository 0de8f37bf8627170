"""What is frozen is what was trained, to the bit."""

from __future__ import annotations

import pytest
import torch

from passes.fake_graph import fake_weights
from passes.freeze_fake_quant import FreezeFakeQuant
from passes.input_scales import scale_entry
from passes.segments import SegmentWeights
from passes.train_fake_quant import TrainFakeQuant
from qcompiler.core import ops
from qcompiler.core.errors import ConfigError, QCompilerError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import weight_of
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import sqnr
from qcompiler.core.stage import Stage
from tests.passes.fake_programs import fake_llama, run

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
KINDS = [
    ("scales", "step", "w4a8g32"),
    ("scales", "step", "w3a8g16z"),
    ("low-rank", "step", "w4a8g32"),
    ("weights", "step", "w2a8g16"),
    ("weights", "clip", "w4a8g32z"),
    ("weights", "range", "w8a8"),
    ("scales", "step", "w4a8g32s"),
    ("weights", "step", "w8a8s"),
]


@pytest.mark.parametrize(("learn", "scales", "scheme"), KINDS)
def test_codes_stand_for_what_was_trained_to_the_bit(learn: str, scales: str, scheme: str) -> None:
    program = fake_llama(scheme, learn=learn, scales=scales)  # type: ignore[arg-type]
    run(program, TrainFakeQuant(block_steps=3, steps=4))
    fetch = SegmentWeights(program)
    before = {weight.name: weight.value(fetch) for weight in fake_weights(program)}
    run(program, FreezeFakeQuant())
    assert program.stage is Stage.QUANTIZED
    for name, value in before.items():
        codes = program.weights.get(name)
        assert isinstance(codes, QuantizedTensor)
        assert torch.equal(codes.dequantize(), value), name


@pytest.mark.parametrize(("learn", "scales", "scheme"), KINDS)
def test_the_frozen_program_is_the_trained_one_in_integers(
    learn: str, scales: str, scheme: str
) -> None:
    program = fake_llama(scheme, learn=learn, scales=scales)  # type: ignore[arg-type]
    run(program, TrainFakeQuant(block_steps=3, steps=4))
    trained = TorchLanguageModel(program).logits(TOKENS)
    run(program, FreezeFakeQuant())
    frozen = TorchLanguageModel(program).logits(TOKENS)
    # Float products of the same values against integer ones: other sums, and now and then a code.
    assert sqnr(frozen, trained) > 30


def test_static_scales_of_activations_learn_and_are_kept() -> None:
    program = fake_llama("w4a8g32s")
    entries = {entry for entry in program.weights if entry.endswith(".input_scale")}
    before = {entry: program.weights.tensor(entry).clone() for entry in entries}
    fact: FakeQuantization = program.facts[FakeQuantization]
    learns = [entry for entry in entries if entry in fact.trainable]
    # Queries, keys and values share what they read, and so do gate and up.
    assert len(entries) == 2 * 7 + 1
    assert len(learns) == 2 * 4 + 1
    run(program, TrainFakeQuant(block_steps=3, steps=4, scale_rate=0.01))
    trained = {entry: program.weights.tensor(entry) for entry in learns}
    run(program, FreezeFakeQuant())
    assert all(torch.equal(program.weights.tensor(entry), trained[entry]) for entry in learns)
    assert any(not torch.equal(program.weights.tensor(entry), before[entry]) for entry in learns)
    assert {scale_entry(name) for name, _ in program.linears()} == entries
    assert all("input_scale" in node.kwargs for _, node in program.linears())


def test_nothing_of_the_training_is_left() -> None:
    program = fake_llama(learn="low-rank")
    names = set(program.weights)
    run(program, FreezeFakeQuant())
    assert not any(node.target in ops.TRAINED_AWAY for node in program.graph.nodes)
    left = set(program.weights)
    assert {name for name in left if "_left" in name or "_scale" in name} == set()
    assert {name for name in names if name.endswith("weight")} <= left
    assert all(weight_of(node) for _, node in program.linears())


def test_a_program_that_was_never_prepared_is_refused() -> None:
    with pytest.raises(ConfigError, match="'freeze-fake-quant' accepts a fake-quantized program"):
        Pipeline((FreezeFakeQuant(),), start=Stage.PLANNED)
    with pytest.raises(ConfigError, match="needs FakeQuantization"):
        Pipeline((FreezeFakeQuant(),), start=Stage.FAKE_QUANTIZED)


def test_weights_that_are_no_numbers_are_refused() -> None:
    program = fake_llama(learn="weights")
    name = fake_weights(program)[1].name
    program.weights.put(name, program.weights.tensor(name) * float("nan"))
    with pytest.raises(QCompilerError, match=f"'{name}' has entries that are infinite"):
        run(program, FreezeFakeQuant())
