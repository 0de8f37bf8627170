"""Calibrate on text that the model writes itself, where none is given.

As LLM-QAT does (arXiv 2305.17888): a text begins with a token picked at random; the next three to
five are the likeliest ones, so that it becomes a sentence; all others are drawn as the model's
probabilities have it, so that no two texts are alike. It is the float model that writes, many
texts at once.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

import qcompiler
from qcompiler.core.batch_interpreter import BatchedLanguageModel
from qcompiler.core.cache import read_cached, write_cached
from qcompiler.core.errors import QCompilerError
from qcompiler.core.printer import print_program
from qcompiler.core.program import Program
from qcompiler.core.progress import NO_PROGRESS, Progress

SAMPLES = 64
SEQUENCE_LENGTH = 256
GREEDY = (3, 5)
"""The fewest and the most tokens that are the likeliest ones, after the first."""

CACHE_BYTES = 1 << 30
"""What the KV caches of the texts that are written at once may take.

A step costs the same for any number of texts before it costs something for each: the more at once,
the faster.
"""

_ROWS = 8
"""Of logits at once: what is computed on the way stays in a cache."""


@dataclass(frozen=True, eq=False)
class Written:
    """Tokens [samples, sequence_length] int64; `seconds`, None if they were kept from before."""

    tokens: torch.Tensor
    seconds: float | None


def generate_tokens(
    program: Program,
    *,
    samples: int = SAMPLES,
    sequence_length: int = SEQUENCE_LENGTH,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress = NO_PROGRESS,
) -> torch.Tensor:
    """Have a float causal LM write texts; return their tokens [samples, sequence_length] int64.

    A text that ends sooner is followed by another in the same sample, begun like the first. Where
    texts have a begin token, each sample starts with it. The same model, seed and sizes give the
    same tokens; they are kept in the user's cache for the next time.

    Raises:
        QCompilerError: the model's logits are not finite.
    """
    return write_tokens(
        program,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        temperature=temperature,
        progress=progress,
    ).tokens


def write_tokens(
    program: Program,
    *,
    samples: int,
    sequence_length: int,
    seed: int,
    temperature: float,
    progress: Progress = NO_PROGRESS,
) -> Written:
    """Do as `generate_tokens`, and say what it took."""
    name = f"tokens/{_key(program, samples, sequence_length, seed, temperature)}.safetensors"
    found = _read(name, (samples, sequence_length))
    if found is not None:
        return Written(found, None)
    began = time.monotonic()
    at_once = _at_once(program, samples, sequence_length)
    starts = range(0, samples, at_once)
    first_tokens = _first_tokens(program)
    begin = program.info.begin_token
    first = 0 if begin is None else 1
    # Made at once: small tensors that stay, between large ones that go, would break up memory.
    found = torch.empty(samples, sequence_length, dtype=torch.int64)
    for done, start in enumerate(starts):
        part = found[start : start + at_once]
        writers = _Writers(
            range(start, start + len(part)),
            sequence_length,
            seed=seed,
            temperature=temperature,
            first_tokens=first_tokens,
            end_tokens=torch.tensor(program.info.end_tokens, dtype=torch.int64),
        )
        model = BatchedLanguageModel(program, len(part), sequence_length)
        if begin is not None:
            part[:, 0] = begin
        part[:, first] = writers.begin()
        for place in range(sequence_length - 1):
            logits = model.step(part[:, place])
            if place >= first:
                part[:, place + 1] = writers.next(logits)
            progress.advance(done * sequence_length + place + 2, len(starts) * sequence_length)
        # Before there is another with as many caches and weights.
        del model
    write_cached(name, safetensors.numpy.save({"tokens": found.numpy()}))
    return Written(found, time.monotonic() - began)


def _at_once(program: Program, samples: int, sequence_length: int) -> int:
    """Return how many texts to write at once: about as many each time.

    Not a matter of how much memory there is: products of other sizes may round otherwise.
    """
    each = BatchedLanguageModel.bytes_per_text(program, sequence_length)
    most = max(1, min(samples, CACHE_BYTES // max(each, 1)))
    times = -(-samples // most)
    return -(-samples // times)


class _Writers:
    """What picks the next token of each text, with random numbers of its own for each."""

    def __init__(
        self,
        indices: range,
        length: int,
        *,
        seed: int,
        temperature: float,
        first_tokens: torch.Tensor,
        end_tokens: torch.Tensor,
    ) -> None:
        self._first_tokens = first_tokens
        self._end_tokens = end_tokens
        # No smaller number divides a float32; at any such, the likeliest token is the only one.
        self._temperature = max(temperature, torch.finfo(torch.float32).tiny)
        generators = [np.random.default_rng([seed, index]) for index in indices]
        # Two for each token: one to pick it, one for what follows if it begins a text.
        drawn = [generator.random((2, length)) for generator in generators]
        self._drawn = torch.from_numpy(np.stack(drawn))
        self._place = 0
        self._greedy = torch.zeros(len(indices), dtype=torch.int64)
        self._ended = torch.zeros(len(indices), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._greedy)

    def begin(self) -> torch.Tensor:
        """Begin every text with a random token; return them, [b]."""
        self._ended.fill_(True)
        return self._pick(torch.zeros(len(self), dtype=torch.int64))

    def next(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the next token of every text for its logits [b, vocab]."""
        largest = logits.amax(-1, keepdim=True)
        # Either is what is not a number, where there is such a thing.
        if not bool(torch.isfinite(largest).all() & torch.isfinite(logits.amin())):
            raise QCompilerError(
                "the model cannot write text to be calibrated on: its logits are infinite or not "
                "a number; look for damaged weights, or give a text"
            )
        shares = self._drawn[:, 0, self._place]
        parts = [slice(start, start + _ROWS) for start in range(0, len(self), _ROWS)]
        tokens = torch.cat(
            [_sample((logits[p] - largest[p]) / self._temperature, shares[p]) for p in parts]
        )
        if bool(self._greedy.any()):
            tokens = torch.where(self._greedy > 0, logits.argmax(-1), tokens)
        return self._pick(tokens)

    def _pick(self, tokens: torch.Tensor) -> torch.Tensor:
        """Begin anew where a text has ended, and take note of where one ends now."""
        pick, follow = self._drawn[:, :, self._place].unbind(1)
        self._place += 1
        begun = self._first_tokens[(pick * len(self._first_tokens)).long()]
        least, most = GREEDY
        greedy = least + (follow * (most + 1 - least)).long()
        tokens = torch.where(self._ended, begun, tokens)
        self._greedy.copy_(torch.where(self._ended, greedy, (self._greedy - 1).clamp(min=0)))
        self._ended.copy_(torch.isin(tokens, self._end_tokens))
        return tokens


def _sample(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return for each row the smallest token whose sum of probabilities exceeds a share of all.

    logits: [b, vocab] float32, of which none is above 0; shares: [b] float64.
    """
    # float32 is enough for probabilities, in a fifth of the time, but not for their sums.
    total = logits.exp().cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(total, shares[:, None] * total[:, -1:], right=True).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)


def _first_tokens(program: Program) -> torch.Tensor:
    """Return the tokens that a text may begin with: all that are text."""
    info = program.info
    assert info.vocab_size is not None
    special = {*info.end_tokens, info.begin_token}
    known = range(info.vocab_size)
    if info.tokenizer_json is not None:
        tokenizer = Tokenizer.from_str(info.tokenizer_json)
        known = range(min(info.vocab_size, tokenizer.get_vocab_size()))
        special |= {i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    found = [token for token in known if token not in special]
    return torch.tensor(found or list(known))


def _key(
    program: Program, samples: int, sequence_length: int, seed: int, temperature: float
) -> str:
    """Hash all that the tokens depend on."""
    digest = hashlib.sha256()
    settings = {
        "compiler": qcompiler.__version__,
        "torch": torch.__version__,
        # Sums of floats are split among threads: another number of them may round otherwise.
        "threads": torch.get_num_threads(),
        "sizes": [samples, sequence_length],
        "seed": seed,
        "temperature": temperature,
        "greedy": GREEDY,
        "texts": CACHE_BYTES,
        "tokenizer": program.info.tokenizer_json,
        "begin": program.info.begin_token,
        "end": program.info.end_tokens,
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(print_program(program).encode())
    for name in program.weights:
        weight = program.weights.tensor(name)
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read(name: str, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return tokens that were kept; None where there are none, or they are damaged."""
    data = read_cached(name)
    if data is None:
        return None
    try:
        tokens = torch.from_numpy(safetensors.numpy.load(data)["tokens"].copy())
    except (SafetensorError, KeyError, ValueError):
        return None
    return tokens if tokens.dtype == torch.int64 and tuple(tokens.shape) == shape else None
