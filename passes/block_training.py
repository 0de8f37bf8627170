"""Train a fake-quantised program block by block towards the float model's values.

Each block learns to give what the float model has after it, from what the blocks before it, trained
already, give it (BRECQ, arXiv 2102.05426; EfficientQAT, arXiv 2407.11062). One block's weights are
in memory at a time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from passes.activations import Activations, owned
from passes.block_error import thinned, values_error
from passes.block_loop import KEEP_EVERY, check_finite
from passes.checkpoint import Checkpoint
from passes.fake_graph import FakeProgram, Rounded, fake_weights, round_weights
from passes.segments import Segment, SegmentWeights, Weights, segments
from passes.training import Course, Learner, Loss, Pace, Schedule, train
from qcompiler.core.calibration import Calibration
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program


@dataclass
class Chains:
    """What goes into a segment, sample by sample: of the trained program, and of the float one."""

    trained: Activations
    plain: Activations

    def close(self) -> None:
        """Forget both."""
        self.trained.close()
        self.plain.close()


class BlockTraining:
    """Trains the blocks of a program in order, and keeps each that is finished.

    Afterwards `records` says how the loss of each block fell.
    """

    def __init__(
        self,
        program: Program,
        context: PassContext,
        calibration: Calibration,
        schedule: Schedule,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.program, self.context, self.calibration = program, context, calibration
        self.schedule, self.checkpoint = schedule, checkpoint
        self.fact: FakeQuantization = program.facts[FakeQuantization]
        self.runner = FakeProgram(program)
        self.parts = segments(program)
        self.budget = None if context.max_ram is None else context.max_ram // 4
        self.records: list[dict[str, Any]] = []
        self._kept_at = time.monotonic()

    @property
    def body(self) -> list[Segment]:
        """The segments that are trained by themselves: all but what is after the last block."""
        return self.parts[:-1] if len(self.parts) > 1 else self.parts

    def run(self, share: float) -> Activations:
        """Train all blocks, which is that share of the work.

        Return what the float model has before its last segment, by sample.
        """
        done, reached = 0, 0
        if self.checkpoint is not None:
            done, reached = self.checkpoint.done, self.checkpoint.reached
            for index in range(done):
                tensors, record = self.checkpoint.read(index)
                for name, tensor in tensors.items():
                    self.program.weights.put(name, tensor)
                self.records += [record] if record else []
            if done:
                text = f"going on after {done} of {len(self.body)} blocks, which were done before"
                self.context.progress.tell(text)
        chains = self._chains(reached)
        # The last block that is trained is the last that needs to know what comes before it.
        trains = self.schedule.steps > 0 and done < len(self.body)
        for index, part in enumerate(self.body[reached:], start=reached):
            outputs = self._after(part, chains.plain)
            learns = trains and index >= done
            if learns:
                tensors, record = self._train(index, part, chains, outputs, share)
                self.records += [record] if record else []
            if trains and part is not self.body[-1]:
                after = Chains(self._after_training(part, chains.trained), outputs)
            else:
                after = Chains(Activations(), outputs)
            if learns and self.checkpoint is not None:
                self._save(tensors, record, after)
            chains.close()
            chains = after
            gc.collect()
        return chains.plain

    def _save(
        self, tensors: Mapping[str, torch.Tensor], record: dict[str, Any], after: Chains
    ) -> None:
        assert self.checkpoint is not None
        now, chains = time.monotonic(), None
        if now - self._kept_at >= KEEP_EVERY and len(after.trained):
            self._kept_at = now
            chains = {"trained": after.trained, "float": after.plain}
        self.checkpoint.save(tensors, record, chains)

    def _chains(self, reached: int) -> Chains:
        """Return what goes into the segment `reached`, kept from before or the samples."""
        if reached and self.checkpoint is not None:
            opened = [
                self.checkpoint.activations(name, self.budget) for name in ("trained", "float")
            ]
            return Chains(*opened)
        inputs = [self.parts[0].order.inputs(sample) for sample in self.calibration.samples]
        return Chains(*(Activations(inputs, budget=self.budget) for _ in range(2)))

    def _after(self, part: Segment, inputs: Activations) -> Activations:
        """Return what the float model has after a segment."""
        outputs = Activations(budget=self.budget)
        with torch.no_grad():
            for values in inputs:
                outputs.append(check_finite(owned(self.runner.run_float(part, values)), part))
        return outputs

    def _after_training(self, part: Segment, inputs: Activations) -> Activations:
        outputs = Activations(budget=self.budget)
        fetch = SegmentWeights(self.program)
        with torch.no_grad():
            rounded = round_weights(fake_weights(self.program, part.nodes), fetch)
            for values in inputs:
                found = self.runner.run(part, values, rounded, fetch)
                outputs.append(check_finite(owned(found), part))
        return outputs

    def _train(
        self, index: int, part: Segment, chains: Chains, targets: Activations, share: float
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Train one block; return what it learned, and how."""
        weights = fake_weights(self.program, part.nodes)
        names = self._trainable(part)
        schedule = replace(self.schedule, seed=self.schedule.seed + index)
        if not names or not schedule.steps:
            return {}, {}
        learner = Learner(self.program, names, self.fact.scales, schedule)
        fetch = SegmentWeights(self.program)
        loss = block_loss(self.runner, part, chains.trained, targets)
        pace = Pace(self.calibration, schedule)

        def watch(course: Course) -> None:
            done = (index + course.step / schedule.steps) / len(self.body)
            self.context.progress.advance(round(1000 * share * done), 1000)
            self.context.progress.status(
                f"block {index} of {len(self.body)}, loss {course.curve[-1]:.4f}, "
                f"{pace.after(course.step)}"
            )

        course = train(
            self.program,
            weights,
            fetch,
            learner,
            loss,
            len(chains.trained),
            schedule,
            what=f"block {index}",
            watch=watch,
        )
        if "diverged" in course.ended:
            self.context.note(
                "train-fake-quant", f"block {index}: {course.ended}; the best is kept"
            )
        learner.write(self.program)
        record = {
            "block": index,
            "before": course.first_loss,
            "after": course.best_loss,
            "iterations": course.step,
            "best": course.best_step,
            "curve": thinned(course.curve),
        }
        return {name: self.program.weights.tensor(name) for name in names}, record

    def _trainable(self, part: Segment) -> list[str]:
        """Return the names that learn and that a segment alone reads, in order."""
        inside = set(map(id, part.nodes))
        read: dict[bool, set[str]] = {True: set(), False: set()}
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                entry = self.program.weights.resolve(str(node.target))
                for user in node.users:
                    read[id(user) in inside].add(entry)
        return [name for name in self.fact.trainable if name in read[True] - read[False]]


def block_loss(
    runner: FakeProgram, part: Segment, inputs: Activations, targets: Activations
) -> Loss:
    """Return the error of a block's output relative to `targets`, by sample."""
    made = {node.name for node in part.nodes}

    def loss(sample: int, rounded: Rounded, fetch: Weights) -> torch.Tensor:
        outputs = runner.run(part, inputs[sample], rounded, fetch)
        return values_error(outputs, targets[sample], made)

    return loss
