"""A fake-quantised program as an ordinary module, for training loops of one's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from passes.activations import Values
from passes.fake_graph import FakeProgram, Rounded, fake_weights, overlaid, round_weights
from passes.freeze_fake_quant import FreezeFakeQuant
from passes.segments import SegmentWeights, Weights, segments
from qcompiler.core.errors import UsageError
from qcompiler.core.facts import FakeQuantization
from qcompiler.core.interpreter import ProgramInterpreter, TorchLanguageModel
from qcompiler.core.pass_base import PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import Program
from qcompiler.core.target import Target

IGNORED = -100
"""The label of a token that does not count, as everywhere in transformers."""


class PreparedModel(nn.Module):
    """A model whose weights, activations and caches are rounded as they will be deployed.

    In training mode it computes in floats, with gradients that pass rounding; in evaluation mode in
    the integer arithmetic of what `qcompiler.compile` makes of it. Its parameters have the names of
    the model's, each with those of its rounding beside it; those that learn require a gradient.
    """

    def __init__(self, program: Program, target: Target, before: Pipeline, after: Pipeline) -> None:
        super().__init__()
        self._program = program
        self._target, self._before, self._after = target, before, after
        self._frozen: tuple[tuple[int, ...], Program] | None = None
        self._rest = SegmentWeights(program)
        self._runner, self._parts = FakeProgram(program), segments(program)
        self._entries: list[str] = []
        fact: FakeQuantization = program.facts[FakeQuantization]
        read = {program.weights.resolve(n) for w in fake_weights(program) for n in w.sources}
        for entry in [*fact.trainable, *sorted(read - set(fact.trainable))]:
            self._register(entry, learns=entry in fact.trainable)

    @property
    def target(self) -> Target:
        """The machine that it was prepared for."""
        return self._target

    @property
    def pipeline(self) -> tuple[Pipeline, Pipeline]:
        """The passes that have run, and those that `qcompiler.compile` will run."""
        return self._before, self._after

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """Return the logits [b, s, vocab] of tokens [b, s], and the loss if there are labels.

        A label of −100 does not count. Tokens see those before them, whatever the mask says, so
        that texts may be padded on the right alone.

        Raises:
            UsageError: the mask hides a token before one that is seen.
        """
        if self._program.info.kind != "causal-lm":
            raise UsageError(f"{self._program.info.name} is no language model; call run(inputs)")
        if attention_mask is not None and bool((attention_mask.diff(dim=-1) > 0).any()):
            raise UsageError(
                "the attention mask hides tokens before others; pad texts on the right"
            )
        logits = torch.cat([rows[0] for rows in self._outputs([(ids,) for ids in input_ids])])
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
        return CausalLMOutput(loss=loss, logits=logits)

    def run(self, *inputs: torch.Tensor) -> Any:
        """Return what the model gives for inputs, as its graph takes them: of any model."""
        (found,) = self._outputs([inputs])
        return found[0] if len(found) == 1 else found

    def float_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return what the model gave before it was prepared, without gradients: to learn from.

        input_ids [b, s] → [b, s, vocab].
        """
        with torch.no_grad():
            found = [self._inputs((ids,)) for ids in input_ids]
            # Part by part, so that the weights of each are read once.
            for part in self._parts:
                found = [self._runner.run_float(part, values) for values in found]
        (name,) = self._output_names()
        return torch.cat([values[name] for values in found])  # type: ignore[misc]

    def program(self) -> Program:
        """Return a copy of the program with the parameters as they are now."""
        weights = self._program.weights.copy()
        for entry in self._entries:
            weights.put(entry, self.get_tensor(entry).detach().clone())
        return self._program.copy(weights=weights)

    def frozen(self) -> Program:
        """Return a program of integer codes: what is deployed."""
        versions = tuple(self.get_tensor(name)._version for name in self._entries)
        if self._frozen is None or self._frozen[0] != versions:
            program = self.program()
            steps = Pipeline(
                (FreezeFakeQuant(),), start=program.stage, facts=frozenset(program.facts)
            )
            steps.run(program, PassContext(target=self._target))
            self._frozen = versions, program
        return self._frozen[1]

    def get_tensor(self, name: str) -> torch.Tensor:
        """Return a parameter or buffer by name."""
        found: Any = self
        for part in name.split("."):
            found = getattr(found, part)
        assert isinstance(found, torch.Tensor)
        return found

    def _register(self, entry: str, *, learns: bool) -> None:
        tensor = self._program.weights.get(entry)
        assert isinstance(tensor, torch.Tensor)
        *path, last = entry.split(".")
        place: nn.Module = self
        for part in path:
            if not isinstance(getattr(place, part, None), nn.Module):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        if learns:
            place.register_parameter(last, nn.Parameter(tensor.clone()))
        else:
            place.register_buffer(last, tensor)
        self._entries.append(entry)

    def _outputs(self, samples: list[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
        """Return the outputs for one sample after the other; weights are rounded once."""
        if not self.training:
            return [self._deployed(sample) for sample in samples]
        program = self._program
        own = {entry: self.get_tensor(entry) for entry in self._entries}
        fetch = overlaid(own, self._rest, program.weights.resolve)
        rounded = round_weights(fake_weights(program), fetch)
        return [self._trained(sample, rounded, fetch) for sample in samples]

    def _trained(
        self, sample: tuple[torch.Tensor, ...], rounded: Rounded, fetch: Weights
    ) -> tuple[torch.Tensor, ...]:
        values = self._inputs(sample)
        for part in self._parts:
            values = self._runner.run(part, values, rounded, fetch)
        return tuple(values[name] for name in self._output_names())  # type: ignore[misc]

    def _inputs(self, sample: tuple[torch.Tensor, ...]) -> Values:
        return self._parts[0].order.inputs(sample)

    def _deployed(self, sample: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        program = self.frozen()
        if program.info.kind == "causal-lm":
            (ids,) = sample
            return (TorchLanguageModel(program).logits(ids.tolist()).unsqueeze(0),)
        with torch.no_grad():
            found = ProgramInterpreter(program).run(*sample)
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    def _output_names(self) -> list[str]:
        return [node.name for node in self._program.graph.output_node().all_input_nodes]
