"""Inserted quantisers compute what deployment will, and name what learns."""

from __future__ import annotations

import pytest
import torch

from passes.fake_graph import FakeProgram, fake_weights, round_weights
from passes.insert_fake_quant import InsertFakeQuant
from passes.quantize_gptq import QuantizeGptq
from passes.quantize_rtn import QuantizeRtn
from passes.segments import SegmentWeights, segments
from passes.set_bits import Rule, SetBits
from qcompiler.core import ops
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.reference import sqnr
from tests.passes.conftest import TinyLlama
from tests.passes.fake_programs import fake_llama, run, samples

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(program: Program) -> torch.Tensor:
    return TorchLanguageModel(program).logits(TOKENS)


def float_llama() -> Program:
    torch.manual_seed(0)
    return TinyLlama(layers=2).program()


def test_the_graph_says_what_is_rounded_and_how() -> None:
    program = fake_llama(learn="low-rank")
    targets = [node.target for node in program.graph.nodes]
    products = targets.count(ops.linear)
    # One more than products: the table's, which the head shares, is rounded where each reads it.
    assert targets.count(ops.fake_quantize_weight) == products + 1
    # Queries, keys and values share what they read, and so do gate and up.
    assert targets.count(ops.fake_quantize) == 4 * 2 + 1
    assert len(program.blocks) == 2


@pytest.mark.parametrize("learn", ["scales", "low-rank", "weights"])
@pytest.mark.parametrize("scheme", ["w4a8g32", "w3g16z", "w8a8"])
def test_it_starts_from_the_nearest_codes(learn: str, scheme: str) -> None:
    program = fake_llama(scheme, learn=learn)  # type: ignore[arg-type]
    rounded = float_llama()
    run(rounded, SetBits(rules=(Rule(scheme=scheme),)), QuantizeRtn())
    values = round_weights(fake_weights(program), SegmentWeights(program))
    for weight in fake_weights(program):
        expected = rounded.weights.get(weight.name)
        assert isinstance(expected, QuantizedTensor)
        assert torch.equal(values[weight.node.name], expected.dequantize()), weight.name


@pytest.mark.parametrize("learn", ["scales", "weights"])
def test_it_starts_from_the_codes_of_gptq(learn: str) -> None:
    program = fake_llama(start="gptq", learn=learn, kv="float")  # type: ignore[arg-type]
    expected = float_llama()
    run(expected, SetBits(rules=(Rule(scheme="w4a8g32"),)), QuantizeGptq())
    for weight in fake_weights(program):
        codes = expected.weights.get(weight.name)
        assert isinstance(codes, QuantizedTensor)
        value = weight.value(SegmentWeights(program))
        assert (value == codes.dequantize()).float().mean() > 0.999


def test_a_learned_clip_starts_at_the_scales_that_were_found() -> None:
    clipped = fake_llama(start="search", learn="weights", scales="clip")
    stepped = fake_llama(start="search", learn="weights", scales="step")
    assert sqnr(logits(stepped), logits(clipped)) > 25


def test_what_learns_is_named() -> None:
    def trainable(**options: str) -> set[str]:
        fact: FakeQuantization = fake_llama(**options).facts[FakeQuantization]  # type: ignore[arg-type]
        return {name.rpartition(".")[2] for name in fact.trainable}

    assert trainable(learn="scales") == {"weight_scale"}
    assert trainable(learn="low-rank") == {"weight_scale", "weight_left", "weight_right"}
    assert trainable(learn="weights") == {"weight_scale", "weight"}
    assert trainable(learn="weights", scales="clip") == {"weight_clip", "weight"}
    assert trainable(learn="weights", scales="range") == {"weight"}


def test_the_float_model_is_still_there() -> None:
    program, plain = fake_llama(learn="weights", kv="kv8"), float_llama()
    runner = FakeProgram(program)
    with torch.no_grad():
        values = segments(program)[0].order.inputs((torch.tensor(TOKENS),))
        for part in segments(program):
            values = runner.run_float(part, values)
    (name,) = [n.name for n in program.graph.output_node().all_input_nodes]
    assert sqnr(logits(plain), values[name][0]) > 100


def test_rounding_apart_from_running_is_what_the_graph_says() -> None:
    program = fake_llama(learn="low-rank", scheme="w3a8g16z")
    runner, fetch = FakeProgram(program), SegmentWeights(program)
    with torch.no_grad():
        rounded = round_weights(fake_weights(program), fetch)
        values = segments(program)[0].order.inputs((torch.tensor(TOKENS),))
        for part in segments(program):
            values = runner.run(part, values, rounded, fetch)
    (name,) = [n.name for n in program.graph.output_node().all_input_nodes]
    # Sums are taken in another order, so that a code of an activation may differ here and there.
    assert sqnr(logits(program), values[name][0]) > 30


def test_gradients_reach_keys_and_values_through_the_cache() -> None:
    program = fake_llama(kv="kv8")
    runner, fetch = FakeProgram(program), SegmentWeights(program)
    weights = fake_weights(program)
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in round_weights(weights, fetch).items()
    }
    values = segments(program)[0].order.inputs((torch.tensor(TOKENS),))
    for part in segments(program):
        values = runner.run(part, values, leaves, fetch)
    (name,) = [n.name for n in program.graph.output_node().all_input_nodes]
    values[name].square().sum().backward()
    for weight in weights:
        gradient = leaves[weight.node.name].grad
        assert gradient is not None, weight.name
        assert bool(gradient.abs().sum() > 0), weight.name


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="scales = 'clip' follows weights"):
        InsertFakeQuant(learn="scales", scales="clip")
    with pytest.raises(ConfigError, match="rank 0"):
        InsertFakeQuant(rank=0)


def test_without_a_plan_it_says_that_nothing_learns() -> None:
    program = float_llama()
    context = run(
        program,
        SetBits(rules=(Rule(scheme="float"),)),
        InsertFakeQuant(start="rtn"),
    )
    assert "nothing is planned" in context.notes["insert-fake-quant"][0]
    assert program.facts[FakeQuantization].trainable == ()
    assert samples().samples
