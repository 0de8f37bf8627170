"""Blocks are quantised one after the other; what was stopped goes on to the same codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from passes import block_loop
from passes.block_loop import BlockResult, BlockRun, quantize_blocks
from passes.quantize_rtn import QuantizeRtn
from passes.rounding import round_to_nearest
from passes.set_bits import Rule, SetBits
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import QCompilerError
from qcompiler.core.formats import TensorFormat
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target

Make = Callable[..., Program]

PLAN = SetBits(rules=(Rule(scheme="w4a8g32"), Rule(kind="head", scheme="w8a8g32")))


@dataclass(frozen=True, kw_only=True)
class Step(Pass):
    """Stands for a pass; its options are part of a checkpoint's name."""

    name: ClassVar[str] = "step"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.PLANNED})
    option: int = 0

    def run(self, program: Program, context: PassContext) -> None:
        raise NotImplementedError


@dataclass
class Rounding:
    """Round to nearest, scaled by the inputs' mean so that codes depend on what came before."""

    float_chain: bool = False
    stop_at: int | None = None
    scaled: bool = True
    seen: list[int] = field(default_factory=list)

    def quantize_block(self, run: BlockRun) -> BlockResult:
        if run.index == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(run.index)
        means = [0.0]
        for values in run.inputs:
            run.segment.run(values, run.weights(), tap=lambda _, x: means.append(float(x.mean())))
        if run.float_outputs is not None:
            assert len(run.float_outputs) == len(run.inputs)
        codes = {}
        for entry, weight in run.planned.items():
            value = run.program.weights.tensor(entry) * (1 + sum(means) if self.scaled else 1)
            codes[entry] = round_to_nearest(value, weight.scheme.weight)
        return BlockResult(codes, {"mean": sum(means)})

    def round_weight(self, weight: torch.Tensor, form: TensorFormat) -> QuantizedTensor:
        return round_to_nearest(weight, form)


@pytest.fixture
def planned(tiny_llama: Make, run_pass: Callable[..., PassContext]) -> Callable[[], Program]:
    def make() -> Program:
        program = tiny_llama(layers=3)
        run_pass(program, PLAN)
        return program

    return make


def context(work: Path | None = None, **options: int) -> PassContext:
    samples = tuple(
        (torch.randint(0, 40, (9 + i,), generator=torch.Generator().manual_seed(i)),)
        for i in range(4)
    )
    target = Target.__new__(Target)
    return PassContext(
        target=target, calibration=Calibration(samples=samples, source="test"), work=work, **options
    )


def codes(program: Program) -> dict[str, torch.Tensor]:
    found = {name: program.weights.get(name) for name in program.weights}
    return {n: w.codes for n, w in found.items() if isinstance(w, QuantizedTensor)}


@pytest.mark.parametrize("float_chain", [False, True])
def test_every_planned_weight_gets_codes(planned: Make, float_chain: bool) -> None:
    program, expected = planned(), planned()
    records = quantize_blocks(program, context(), Step(), Rounding(float_chain=float_chain))
    QuantizeRtn().run(expected, context())
    assert codes(program).keys() == codes(expected).keys()
    assert [str(n.target) for n in program.graph.nodes] == [
        str(n.target) for n in expected.graph.nodes
    ]
    # The head is tied to the table, and nothing else is behind the blocks.
    assert len(records) == 4


@pytest.mark.parametrize("keep_every", [0.0, 1e9])
@pytest.mark.parametrize(("stop", "float_chain"), [(1, False), (3, True)])
def test_what_was_stopped_goes_on_to_the_same_codes(
    planned: Make,
    tmp_path: Path,
    stop: int,
    float_chain: bool,
    keep_every: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(block_loop, "KEEP_EVERY", keep_every)
    whole = planned()
    expected = quantize_blocks(whole, context(), Step(), Rounding(float_chain=float_chain))
    stopped = Rounding(float_chain=float_chain, stop_at=stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_blocks(planned(), context(tmp_path), Step(), stopped)
    program, rest = planned(), Rounding(float_chain=float_chain)
    records = quantize_blocks(program, context(tmp_path), Step(), rest)
    # What is before the first block has no products; it is not asked for.
    assert rest.seen == list(range(stop, 4))
    assert records == expected
    assert all(torch.equal(codes(program)[n], c) for n, c in codes(whole).items())


def test_what_is_all_done_is_read_again(
    planned: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_loop, "KEEP_EVERY", 0.0)
    program, again, second = planned(), planned(), Rounding()
    quantize_blocks(program, context(tmp_path), Step(), Rounding())
    quantize_blocks(again, context(tmp_path), Step(), second)
    assert second.seen == []
    assert all(torch.equal(codes(program)[n], c) for n, c in codes(again).items())
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("after-*"))) == 1


def test_another_option_text_or_weight_begins_anew(planned: Make, tmp_path: Path) -> None:
    quantize_blocks(planned(), context(tmp_path), Step(), Rounding())
    other = planned()
    name = "model.layers.1.mlp.down_proj.weight"
    other.weights.put(name, other.weights.tensor(name) * 2)
    fewer = context(tmp_path)
    fewer.calibration = fewer.samples("test", 2)
    for step, program, where in (
        (Step(option=1), planned(), context(tmp_path)),
        (Step(), other, context(tmp_path)),
        (Step(), planned(), fewer),
    ):
        quantizer = Rounding()
        quantize_blocks(program, where, step, quantizer)
        assert quantizer.seen == [1, 2, 3]


def test_a_damaged_checkpoint_counts_for_nothing(planned: Make, tmp_path: Path) -> None:
    quantize_blocks(planned(), context(tmp_path), Step(), Rounding())
    (folder,) = tmp_path.iterdir()
    (folder / "block-0002.safetensors").unlink()
    quantizer = Rounding()
    quantize_blocks(planned(), context(tmp_path), Step(), quantizer)
    assert quantizer.seen == [1, 2, 3]


def test_files_give_what_memory_gives(planned: Make) -> None:
    one, other = planned(), planned()
    quantize_blocks(one, context(), Step(), Rounding(float_chain=True))
    quantize_blocks(other, context(max_ram=10_000), Step(), Rounding(float_chain=True))
    assert all(torch.equal(codes(one)[n], c) for n, c in codes(other).items())


def test_values_that_are_not_finite_name_what_computed_them(planned: Make) -> None:
    program = planned()
    name = "model.layers.1.input_layernorm.weight"
    program.weights.put(name, torch.full_like(program.weights.tensor(name), float("nan")))
    with pytest.raises(QCompilerError, match=r"computed from model\.layers\.1.*not a number"):
        quantize_blocks(program, context(), Step(), Rounding(scaled=False))
