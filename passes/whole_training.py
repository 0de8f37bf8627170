"""Train a fake-quantised program from end to end, as it will be run.

The loss is the divergence from the float model's predictions, or the cross-entropy of the text, or
their sum. Of the float model, what it has before its last segment is kept for every sample, and
the last segment is run again when its predictions are wanted: they would take far more memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as functional
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint as run_again_later

from passes.activations import Activations, Values
from passes.block_error import value_error, values_error
from passes.fake_graph import FakeProgram, Rounded, fake_weights
from passes.segments import Segment, SegmentWeights, Weights, segments
from passes.training import Course, Learner, Pace, Schedule, train
from qcompiler.core.calibration import Calibration
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.pass_base import PassContext
from qcompiler.core.program import Program

Objective = Literal["distill", "cross-entropy", "both"]

KEEP_EVERY = 120.0
"""Seconds after which a state is kept."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What end-to-end training makes small, and how it saves memory and time.

    hidden: the weight of the error of what goes into the last segment, beside the loss. recompute:
    keep only values between blocks for the way back, and run each block again. bf16: multiply in
    bfloat16, but for the last segment.
    """

    loss: Objective
    hidden: float
    recompute: bool
    bf16: bool


class WholeTraining:
    """Trains all that learns in a program at once; a state is kept in `file` now and then."""

    def __init__(
        self,
        program: Program,
        context: PassContext,
        calibration: Calibration,
        schedule: Schedule,
        settings: Settings,
        file: Path | None,
    ) -> None:
        self.program, self.context, self.calibration = program, context, calibration
        self.schedule, self.settings, self.file = schedule, settings, file
        self.fact: FakeQuantization = program.facts[FakeQuantization]
        self.runner = FakeProgram(program)
        self.parts = segments(program)
        (self.output,) = [n.name for n in program.graph.output_node().all_input_nodes]
        self._kept_at = time.monotonic()

    def run(self, float_hidden: Activations, done: float) -> Course:
        """Train towards what the float model makes of `float_hidden`; `done`: the share before."""
        learner = Learner(self.program, self.fact.trainable, self.fact.scales, self.schedule)
        course = self._resume(learner)
        first = 0 if course is None else course.step
        pace = Pace(self.calibration, self.schedule, first=first)

        def watch(course: Course) -> None:
            share = done + (1 - done) * course.step / self.schedule.steps
            self.context.progress.advance(round(1000 * share), 1000)
            self.context.progress.status(
                f"loss {course.curve[-1]:.4f}, held out {course.held[-1][1]:.4f}, "
                f"{pace.after(course.step)}"
            )
            if self.file is not None and time.monotonic() - self._kept_at >= KEEP_EVERY:
                self._kept_at = time.monotonic()
                keep(self.file, learner, course)

        course = train(
            self.program,
            fake_weights(self.program),
            SegmentWeights(self.program),
            learner,
            self._loss(float_hidden),
            len(self.calibration),
            self.schedule,
            what="the model",
            course=course,
            watch=watch,
        )
        learner.write(self.program)
        if self.file is not None:
            keep(self.file, learner, course)
        return course

    def _resume(self, learner: Learner) -> Course | None:
        course = None if self.file is None else resume(self.file, learner)
        if course is not None:
            self.context.progress.tell(
                f"going on after step {course.step} of {self.schedule.steps}, done before"
            )
        return course

    def _loss(self, float_hidden: Activations) -> Callable[[int, Rounded, Weights], torch.Tensor]:
        last = self.parts[-1]
        order = last.order
        distills = self.settings.loss != "cross-entropy"

        def loss(sample: int, rounded: Rounded, fetch: Weights) -> torch.Tensor:
            values: Values = order.inputs(self.calibration.samples[sample])
            for part in self.parts[:-1]:
                values = self._through(part, values, rounded, fetch)
            hidden = values
            output = self.runner.run(last, values, rounded, fetch)[self.output]
            assert isinstance(output, torch.Tensor)
            terms = []
            if distills:
                with torch.no_grad():
                    wanted = self.runner.run_float(last, float_hidden[sample])[self.output]
                assert isinstance(wanted, torch.Tensor)
                terms.append(self._distance(output, wanted))
            if self.settings.loss != "distill":
                (tokens,) = self.calibration.samples[sample]
                terms.append(functional.cross_entropy(output[0, :-1], tokens[1:]))
            if self.settings.hidden:
                made = {node.name for part in self.parts[:-1] for node in part.nodes}
                far = values_error(hidden, float_hidden[sample], made)
                terms.append(self.settings.hidden * far)
            return torch.stack(terms).sum()

        return loss

    def _distance(self, output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if self.program.info.kind == "causal-lm":
            return divergence(output, wanted)
        found = value_error(output, wanted)
        assert found is not None
        return found

    def _through(self, part: Segment, values: Values, rounded: Rounded, fetch: Weights) -> Values:
        bf16 = torch.autocast("cpu", torch.bfloat16) if self.settings.bf16 else nullcontext()
        with bf16:
            if not (self.settings.recompute and torch.is_grad_enabled()):
                return self.runner.run(part, values, rounded, fetch)
            found: Values = run_again_later(
                self.runner.run,
                part,
                values,
                rounded,
                fetch,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            return found


def divergence(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the mean KL divergence of predictions from those that are wanted, in nats a token.

    Both are logits [..., vocab].
    """
    found = functional.log_softmax(output.flatten(0, -2), -1)
    target = functional.log_softmax(wanted.flatten(0, -2), -1)
    return functional.kl_div(found, target, reduction="batchmean", log_target=True)


def keep(file: Path, learner: Learner, course: Course) -> None:
    """Write all that training goes on from, whole or not at all."""
    tensors = {f"now|{name}": p.detach() for name, p in learner.parameters.items()}
    tensors |= {f"best|{name}": value for name, value in course.best.items()}
    names = {id(p): name for name, p in learner.parameters.items()}
    for parameter, state in learner.optimizer.state.items():
        for key, value in state.items():
            tensors[f"adam.{key}|{names[id(parameter)]}"] = value
    content = {
        "step": course.step,
        "best_step": course.best_step,
        "curve": course.curve,
        "held": course.held,
        "ended": course.ended,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    data = {name: tensor.contiguous() for name, tensor in tensors.items()}
    partial.write_bytes(safetensors.torch.save(data, metadata={"course": json.dumps(content)}))
    partial.rename(file)


def resume(file: Path, learner: Learner) -> Course | None:
    """Read what `keep` wrote into a learner; None where there is nothing, or it is damaged."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            content: dict[str, Any] = json.loads(opened.metadata()["course"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        now = {name: tensors[f"now|{name}"] for name in learner.parameters}
        best = {name: tensors[f"best|{name}"] for name in learner.parameters}
        course = Course(
            step=content["step"],
            best_step=content["best_step"],
            best=best,
            curve=content["curve"],
            held=[(step, loss) for step, loss in content["held"]],
            ended=content["ended"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    learner.restore(now)
    for name, parameter in learner.parameters.items():
        prefix = f"|{name}"
        state = {
            key.removesuffix(prefix).removeprefix("adam."): value
            for key, value in tensors.items()
            if key.startswith("adam.") and key.endswith(prefix)
        }
        if state:
            learner.optimizer.state[parameter] = state
    return course
