"""Train a fake-quantised program: block by block, then from end to end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from passes.block_error import thinned
from passes.block_training import BlockTraining
from passes.checkpoint import open_checkpoint
from passes.training import Schedule
from passes.training_memory import check_memory
from passes.whole_training import Objective, Settings, WholeTraining
from qcompiler.core.errors import ConfigError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage

BLOCK_WORK = 0.9
"""About how much longer an iteration over all blocks takes than a step through the whole."""


@dataclass(frozen=True, kw_only=True)
class TrainFakeQuant(Pass):
    """Train what `insert-fake-quant` lets learn, on the calibration samples.

    First each block learns to give what the float model has after it, `block_steps` steps each;
    then all learn together for `steps` steps (0 leaves either out). A step is one of AdamW on the
    gradients of `batch` samples, each run by itself. Rates rise over the share `warmup` of the
    steps and fall along a cosine; `learning_rate` is that of weights and updates, scales learn at
    `scale_rate`, as a share of themselves. `loss` of the second part: "distill", the divergence
    from the float model's predictions, "cross-entropy" of the samples' text, or "both";
    `hidden` adds that many times the error of what goes into the model's last part.

    One sample in 16, 8 at most, is kept out, and the iterate with the best loss on these is kept,
    the start among them; training ends early when `patience` looks at it, of `checks` in all, have
    not been better. `recompute` runs blocks again on the way back, in place of keeping what is in
    them. `bf16` multiplies in bfloat16.
    """

    name: ClassVar[str] = "train-fake-quant"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANTIZED})
    needs: ClassVar[frozenset[type[Any]]] = frozenset({FakeQuantization})
    keeps: ClassVar[frozenset[type[Any]] | None] = frozenset({FakeQuantization})

    # Many short texts: what a step costs grows with their length, and they teach as much.
    sample_sizes: ClassVar[tuple[int, int] | None] = (128, 256)

    block_steps: int = 32
    steps: int = 128
    batch: int = 2
    learning_rate: float = 2e-5
    block_learning_rate: float = 1e-4
    scale_rate: float = 1e-3
    block_scale_rate: float = 5e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    loss: Objective = "distill"
    hidden: float = 0.0
    checks: int = 8
    patience: int = 3
    recompute: bool = False
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "block_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 0 or more")
        if not self.steps and not self.block_steps:
            raise ConfigError("steps and block_steps are both 0, which trains nothing")
        for name in ("batch", "checks", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; use 1 or more")
        for name in ("learning_rate", "block_learning_rate", "scale_rate", "block_scale_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name):g}; use a number from 0 to 1")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup:g}; use a share from 0 to below 1")
        if self.hidden < 0 or self.weight_decay < 0:
            raise ConfigError("hidden and weight_decay cannot be negative")

    @property
    def calibrates(self) -> bool:
        return True

    def check_program(self, program: Program, context: PassContext) -> None:
        if program.info.kind != "causal-lm" and self.loss != "distill":
            raise ConfigError(
                f"pass '{self.name}': {program.info.name} predicts no tokens, which "
                f"loss = '{self.loss}' is about; use loss = 'distill'"
            )

    def run(self, program: Program, context: PassContext) -> None:
        calibration = context.samples(self.name)
        fact: FakeQuantization = program.facts[FakeQuantization]
        if not fact.trainable:
            context.note(self.name, "nothing is left to learn, so that nothing was trained")
            return
        check_memory(program, context, self, calibration)
        checkpoint = None
        if context.work is not None:
            checkpoint = open_checkpoint(context.work, self, program, calibration)
        schedule = Schedule(
            steps=self.steps,
            batch=self.batch,
            rate=self.learning_rate,
            scale_rate=self.scale_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            checks=self.checks,
            patience=self.patience,
            seed=self.seed,
        )
        by_block = replace(
            schedule,
            steps=self.block_steps,
            rate=self.block_learning_rate,
            scale_rate=self.block_scale_rate,
            checks=4,
            patience=self.patience + 1,
        )
        blocks = BlockTraining(program, context, calibration, by_block, checkpoint)
        before = self.block_steps * BLOCK_WORK
        share = before / (before + self.steps)
        hidden = blocks.run(share)
        context.record(
            self.name,
            "blocks_measure",
            "squared error of the block's output, relative for each token",
        )
        context.record(
            self.name,
            "blocks",
            [{k: v for k, v in r.items() if k != "curve"} for r in blocks.records],
        )
        context.record(self.name, "curves", [record["curve"] for record in blocks.records])
        if not self.steps:
            return
        whole = WholeTraining(
            program,
            context,
            calibration,
            schedule,
            Settings(loss=self.loss, hidden=self.hidden, recompute=self.recompute, bf16=self.bf16),
            None if checkpoint is None else checkpoint.folder / "whole.safetensors",
        )
        course = whole.run(hidden, share)
        if course.ended:
            text = f"ended after {course.step} of {self.steps} steps, because {course.ended}; "
            text += f"the best iterate, of step {course.best_step}, is kept"
            context.note(self.name, text)
            context.progress.tell(text)
        context.record(
            self.name,
            "whole",
            {
                "loss": self.loss,
                "steps": course.step,
                "best": course.best_step,
                "before": course.first_loss,
                "after": course.best_loss,
                "held_out": [[s, x if math.isfinite(x) else None] for s, x in course.held],
                "curve": _points(course.curve),
            },
        )


def _points(curve: list[float]) -> list[list[float]]:
    """Return (step, loss) of few enough points of a curve to draw, each the mean of some steps.

    >>> _points([3.0, 2.0, 1.0])
    [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]]
    """
    means = thinned(curve)
    size = -(-len(curve) // max(1, len(means)))
    return [[float(min(len(curve), (i + 0.5) * size + 0.5)), mean] for i, mean in enumerate(means)]
