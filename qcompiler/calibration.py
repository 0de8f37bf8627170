"""Make calibration samples of what a user hands over, or of what the model writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from qcompiler.calibration_source import (
    CalibrationData,
    Inputs,
    Source,
    Tensors,
    Texts,
    read_source,
)
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import UsageError
from qcompiler.core.pass_base import Pass
from qcompiler.core.program import ModelInfo, Program
from qcompiler.core.progress import NO_PROGRESS, Progress
from qcompiler.self_generated import SAMPLES as GENERATED_SAMPLES
from qcompiler.self_generated import SEQUENCE_LENGTH as GENERATED_LENGTH
from qcompiler.self_generated import generate_tokens
from qcompiler.tokenizer import open_tokenizer

SAMPLES = 128
SEQUENCE_LENGTH = 512

LEAST_SAMPLES = 2
LEAST_TOKENS = 512
"""With less text than this, what is measured says more of the text than of the model."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """What was asked for; whatever can be wrong with it without the model has been found.

    `sizes`: how many samples of text a pass wants, and of how many tokens, where it was not said.
    """

    source: Source | None
    samples: int | None
    sequence_length: int | None
    seed: int
    sizes: tuple[int, int] | None = None

    def build(self, program: Program, progress: Progress = NO_PROGRESS) -> Calibration:
        """Make the samples; see `build_calibration`."""
        info = program.info
        if self.source is None:
            return self._generate(program, progress)
        if isinstance(self.source, Calibration):
            _check_samples(program, self.source.samples)
            return self.source
        if info.kind == "causal-lm":
            return self._of_tokens(info)
        return self._of_inputs(program)

    def shortage(self, made: Calibration) -> str | None:
        """Say so where there are fewer samples than were asked for."""
        wanted = self.samples
        if wanted is None:
            wanted = self._count(SAMPLES) if isinstance(self.source, Texts) else len(made)
        if len(made) >= wanted:
            return None
        return f"{made.source} gives {len(made)} samples; {wanted} were wanted"

    def _generate(self, program: Program, progress: Progress) -> Calibration:
        info = program.info
        if info.kind != "causal-lm":
            raise UsageError(
                f"the pipeline runs {info.name} on samples, and only a language model can write "
                "its own; give a calibration"
            )
        length = self._length(info, GENERATED_LENGTH)
        tokens = generate_tokens(
            program,
            samples=self._count(GENERATED_SAMPLES),
            sequence_length=length,
            seed=self.seed,
            progress=progress,
        )
        return Calibration(
            samples=tuple((row,) for row in tokens),
            source=f"text that the model wrote itself (seed {self.seed})",
            generated=True,
        )

    def _of_tokens(self, info: ModelInfo) -> Calibration:
        source, length = self.source, self._length(info, SEQUENCE_LENGTH)
        if isinstance(source, Inputs):
            raise UsageError(
                f"{info.name} is a language model; calibrate it on text or tokens, not on tuples"
            )
        if isinstance(source, Tensors):
            tensors = [_checked_tokens(tensor, info) for tensor in source.tensors]
            rows = [row for tensor in tensors if tensor.dim() == 2 for row in tensor]
            if rows and any(tensor.dim() == 1 for tensor in tensors):
                raise UsageError(
                    "the calibration has tensors of one and of two dimensions; give running tokens "
                    "[t] or samples [b, s]"
                )
            if rows:
                return self._of_rows(rows, info, source.name)
            stream = torch.cat(tensors)
        else:
            assert isinstance(source, Texts)
            tokenizer = open_tokenizer(info.name, info.tokenizer_json)
            ids = [tokenizer.encode(d, add_special_tokens=False).ids for d in source.documents]
            stream = torch.tensor([token for document in ids for token in document])
        begin = [] if info.begin_token is None else [info.begin_token]
        body = length - len(begin)
        self._check_enough(source.name, len(stream), body)
        pieces = list(stream[: len(stream) // body * body].reshape(-1, body))
        prefix = torch.tensor(begin, dtype=torch.int64)
        chosen = self._choose(pieces, self._count(SAMPLES))
        return Calibration(
            samples=tuple((torch.cat((prefix, piece)),) for piece in chosen), source=source.name
        )

    def _of_rows(self, rows: list[torch.Tensor], info: ModelInfo, name: str) -> Calibration:
        """Take samples as they were made; a sequence length that was asked for cuts them."""
        longest = max(map(len, rows))
        limit = self.sequence_length or longest
        if info.max_context is not None and min(limit, longest) > info.max_context:
            raise UsageError(
                f"calibration samples of {longest} tokens do not fit the context of {info.name}, "
                f"which holds {info.max_context}; set a sequence length"
            )
        chosen = self._choose(rows, self.samples or len(rows))
        return Calibration(samples=tuple((row[:limit].clone(),) for row in chosen), source=name)

    def _of_inputs(self, program: Program) -> Calibration:
        source = self.source
        if isinstance(source, Texts):
            return self._of_sentences(program, source)
        assert isinstance(source, Tensors | Inputs)
        if self.sequence_length is not None:
            raise UsageError(
                f"a sequence length goes with text and tokens; {program.info.name} is calibrated "
                "on tensors as they are"
            )
        samples = source.samples if isinstance(source, Inputs) else [(t,) for t in source.tensors]
        name = source.name.replace("tokens", "a tensor")
        _check_samples(program, samples)
        chosen = self._choose(samples, self.samples or len(samples))
        return Calibration(samples=tuple(chosen), source=name)

    def _of_sentences(self, program: Program, source: Texts) -> Calibration:
        """Make samples of an encoder: its special tokens around each line, or around each text."""
        info = program.info
        if [node.target for node in program.placeholders()] != ["ids", "mask"]:
            raise UsageError(
                f"{info.name} does not read text; calibrate it on a list of tuples of its inputs"
            )
        tokenizer = open_tokenizer(info.name, info.tokenizer_json)
        tokenizer.enable_truncation(self._length(info, SEQUENCE_LENGTH))
        texts = list(source.documents)
        if source.lines:
            texts = [line for text in texts for line in text.splitlines()]
        texts = [text for text in texts if text.strip()]
        chosen = self._choose(texts, self._count(SAMPLES))
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in chosen]
        count = sum(row.numel() for row in ids)
        if len(ids) < LEAST_SAMPLES or count < LEAST_TOKENS:
            raise UsageError(
                f"{source.name} gives {len(ids)} samples with {count} tokens, which is too little "
                f"to calibrate on; {LEAST_SAMPLES} samples with {LEAST_TOKENS} tokens are the least"
            )
        return Calibration(
            samples=tuple((row, torch.ones_like(row)) for row in ids), source=source.name
        )

    def _count(self, default: int) -> int:
        """Return how many samples are wanted."""
        return self.samples or (default if self.sizes is None else self.sizes[0])

    def _length(self, info: ModelInfo, default: int) -> int:
        """Return how many tokens a sample may have."""
        limit = info.max_context
        default = default if self.sizes is None else self.sizes[1]
        if self.sequence_length is None:
            return default if limit is None else min(default, limit)
        if limit is not None and self.sequence_length > limit:
            raise UsageError(
                f"calibration samples of {self.sequence_length} tokens do not fit the context of "
                f"{info.name}, which holds {limit}; set a shorter sequence length"
            )
        return self.sequence_length

    def _check_enough(self, name: str, tokens: int, body: int) -> None:
        samples = min(LEAST_SAMPLES, self._count(SAMPLES))
        least = max(samples * body, min(LEAST_TOKENS, self._count(SAMPLES) * body))
        if tokens < least:
            raise UsageError(
                f"{name} has {tokens} tokens, which is too little to calibrate on; {least} are "
                f"the least for samples of {body}, and {self._count(SAMPLES) * body} are "
                "wanted"
            )

    def _choose(self, things: Sequence[T], count: int) -> list[T]:
        """Pick things at random, each once, in an order that follows from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(things), generator=generator)
        return [things[place] for place in order[:count].tolist()]


def check_calibration(
    given: CalibrationData | None = None,
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
) -> CalibrationRequest:
    """Read what was given and check what can be checked without the model.

    Raises:
        UsageError: a number is out of range, or what was given cannot be calibrated on.
    """
    for name, value, least in (("samples", samples, 1), ("sequence_length", sequence_length, 2)):
        if value is not None and (type(value) is not int or value < least):
            raise UsageError(f"{name} is {value!r}; give a whole number from {least}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UsageError(f"seed is {seed!r}; give a whole number from 0")
    source = None if given is None else read_source(given)
    if isinstance(source, Calibration) and (samples, sequence_length) != (None, None):
        raise UsageError("the calibration is made of samples already; leave out what to make them")
    request = CalibrationRequest(
        source=source, samples=samples, sequence_length=sequence_length, seed=seed
    )
    wanted = (samples or SAMPLES) * (sequence_length or SEQUENCE_LENGTH)
    if isinstance(source, Texts) and source.size < (least := min(LEAST_TOKENS, wanted)):
        raise UsageError(
            f"{source.name} has {source.size} bytes, which is too little to calibrate on; at least "
            f"{least} tokens are needed, and {wanted} are wanted"
        )
    return request


def request_calibration(
    steps: Sequence[Pass],
    given: CalibrationData | None = None,
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    writes: bool = True,
) -> CalibrationRequest | None:
    """Check what passes are to be calibrated on; None if none of them asks for it.

    writes: whether the model may be one that can write text itself.

    Raises:
        UsageError: as `check_calibration`; or something was given that would not be used, or
            nothing for a model that cannot write text.
    """
    request = check_calibration(given, samples=samples, sequence_length=sequence_length, seed=seed)
    needing = [step.name for step in steps if step.calibrates]
    if needing:
        sizes = [step.sample_sizes for step in steps if step.calibrates and step.sample_sizes]
        request = replace(request, sizes=sizes[0] if sizes else None)
        if given is None and not writes:
            raise UsageError(
                f"pass '{needing[0]}' runs the model on samples, and only a language model can "
                "write its own; give a calibration, such as a list of tuples of input tensors"
            )
        return request
    asked = {"calibration": given, "samples": samples, "sequence length": sequence_length}
    unused = [what for what, value in asked.items() if value is not None]
    if unused:
        raise UsageError(
            f"no pass of this pipeline runs the model on samples, so the {unused[0]} would not be "
            "used; leave it out, or choose a pipeline that calibrates"
        )
    return None


def build_calibration(
    program: Program,
    given: CalibrationData | None = None,
    *,
    samples: int | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Calibration:
    """Make calibration samples for a captured program.

    Texts and running tokens [t] are put one after the other, cut into pieces of `sequence_length`
    (512 if not given, or the model's context), of which `samples` (128) are picked at random, each
    once. Where the model's texts have a begin token, each piece has it first. Samples [b, s] and
    tuples of a graph's inputs are taken as they are. An encoder reads each line of a file, or each
    text, as a sample. Without anything given a language model writes 64 texts of 256 tokens itself.

    Raises:
        UsageError: what was given does not fit the model, or is too little.
        QCompilerError: the model has no tokenizer, or cannot write text.
    """
    request = check_calibration(given, samples=samples, sequence_length=sequence_length, seed=seed)
    return request.build(program, progress)


def _checked_tokens(tensor: torch.Tensor, info: ModelInfo) -> torch.Tensor:
    """Return tokens as int64, [t] or [b, s]."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UsageError(f"tokens are whole numbers; the calibration has {tensor.dtype}")
    if tensor.dim() not in (1, 2) or 0 in tensor.shape:
        raise UsageError(
            f"a calibration tensor has shape {list(tensor.shape)}; give running tokens [t] or "
            "samples [b, s]"
        )
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or (info.vocab_size is not None and high >= info.vocab_size):
        raise UsageError(
            f"token {low if low < 0 else high} of the calibration is not in the vocabulary of "
            f"{info.name}, which has {info.vocab_size} tokens"
        )
    return tensor.detach().to("cpu", torch.int64)


def _check_samples(program: Program, samples: Sequence[tuple[torch.Tensor, ...]]) -> None:
    """Make sure that every sample fits the graph's inputs."""
    if program.info.kind == "causal-lm":
        for index, sample in enumerate(samples):
            if len(sample) != 1 or sample[0].dim() != 1:
                raise UsageError(f"calibration sample {index} is not one tensor of tokens [s]")
            _checked_tokens(sample[0], program.info)
        return
    inputs = program.placeholders()
    for index, sample in enumerate(samples):
        what = f"calibration sample {index}"
        if len(sample) != len(inputs):
            names = ", ".join(str(node.target) for node in inputs)
            raise UsageError(
                f"{what} has {len(sample)} tensors; {program.info.name} takes {len(inputs)}: "
                f"{names}"
            )
        sizes: dict[str, int] = {}
        for node, tensor in zip(inputs, sample, strict=True):
            wanted = node.meta["val"]
            fits = len(wanted.shape) == tensor.dim() and all(
                size == expected
                if isinstance(expected, int)
                else size == sizes.setdefault(str(expected), size)
                for expected, size in zip(wanted.shape, tensor.shape, strict=True)
            )
            if tensor.dtype != wanted.dtype or not fits:
                raise UsageError(
                    f"{what}: '{node.target}' is {_kind(tensor)}; {program.info.name} takes "
                    f"{_kind(wanted)}"
                )


def _kind(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype}[{', '.join(map(str, tensor.shape))}]"
