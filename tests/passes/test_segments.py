"""A program cut into segments computes what the whole program computes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from passes.quantize_rtn import QuantizeRtn
from passes.segments import SegmentWeights, segments
from passes.set_bits import Rule, SetBits
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr

Make = Callable[..., Program]
Run = Callable[..., PassContext]

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2])


def test_segments_in_turn_compute_what_the_program_computes(tiny_llama: Make) -> None:
    program = tiny_llama(layers=3)
    program.blocks = find(program)
    parts = segments(program)
    assert len(parts) == 5
    values = parts[0].order.inputs((TOKENS,))
    with torch.no_grad():
        for part in parts:
            values = part.run(values, SegmentWeights(program))
    (name,) = [n.name for n in program.graph.output_node().all_input_nodes]
    # Attention is torch's own kernel, which sums in another order.
    assert sqnr(TorchLanguageModel(program).logits(TOKENS.tolist()), values[name][0]) > 110


def test_what_is_needed_no_more_is_forgotten(tiny_llama: Make) -> None:
    program = tiny_llama(layers=3)
    program.blocks = find(program)
    parts = segments(program)
    values = parts[0].order.inputs((TOKENS,))
    sizes = []
    for part in parts[:-1]:
        values = part.run(values, SegmentWeights(program))
        sizes.append(len(values))
    assert len(set(sizes[:-1])) == 1
    assert sizes[-1] == sizes[0] - 2  # nothing after the last layer turns by angles
    assert not [name for name in values if "cache" in name]


def test_parts_of_a_block_begin_with_products_of_one_input(tiny_llama: Make) -> None:
    program = tiny_llama(layers=2)
    program.blocks = find(program)
    block = segments(program)[1]
    names = [[n.rpartition(".")[2] for n, _ in part.linears()] for part in block.split()]
    assert names == [
        [],
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    values = segments(program)[0].run(block.order.inputs((TOKENS,)), SegmentWeights(program))
    expected = block.run(values, SegmentWeights(program))
    for part in block.split():
        values = part.run(values, SegmentWeights(program))
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in values)


def test_quantised_products_are_those_of_the_reference(tiny_llama: Make, run_pass: Run) -> None:
    program = tiny_llama(layers=2)
    run_pass(program, SetBits(rules=(Rule(scheme="w4a8g32"),)))
    plan = dict(program.plan)
    run_pass(program, QuantizeRtn())
    parts = segments(program)
    values = parts[0].order.inputs((TOKENS,))
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for part in parts:
            values = part.run(values, SegmentWeights(program), plan, tap=seen.__setitem__)
    (name,) = [n.name for n in program.graph.output_node().all_input_nodes]
    reference = TorchLanguageModel(program).logits(TOKENS.tolist())
    # Sums are taken in another order, so that a code of an activation may differ here and there.
    assert sqnr(reference, values[name][0]) > 30
    assert seen.keys() == dict(program.linears()).keys()


def test_a_program_without_blocks_is_one_segment() -> None:
    from qcompiler.core import ops
    from qcompiler.core.program import ModelInfo

    build = ProgramBuilder({"a.weight": torch.randn(4, 8)})
    y = build.call(ops.linear, build.input("x", ("t", 8)), build.weight("a.weight"))
    program = build.finish(y, ModelInfo(name="one", kind="module", architecture="one"))
    (part,) = segments(program)
    x = torch.randn(3, 8)
    values = part.run(part.order.inputs((x,)), SegmentWeights(program))
    assert torch.equal(values[y.name], x @ program.weights.tensor("a.weight").T)


def find(program: Program) -> tuple[object, ...]:
    from qcompiler.core.blocks import find_blocks

    return find_blocks(program.graph)
