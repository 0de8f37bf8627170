"""Samples are cut and picked as documented, again the same, and too little is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from passes.train_fake_quant import TrainFakeQuant
from qcompiler import calibration
from qcompiler.calibration import build_calibration, check_calibration, request_calibration
from qcompiler.core.calibration import Calibration
from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.program import Program
from qcompiler.core.stage import Stage
from qcompiler.frontend import capture
from tests.families import random_weights, tiny_model

WORDS = " ".join(f"word{i}" for i in range(2000))
BEGIN = 255


def tokenizer_json(**special: int) -> str:
    """A tokenizer of bytes: 94 printable ones and a space, then special tokens."""
    letters = {chr(i): i - 33 for i in range(33, 127)} | {"Ġ": 94, "?!": 95} | special
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="?!"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=list(special.items())
        )
        # A limit that some tokenizers bring along.
        tokenizer.enable_truncation(8)
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def captured() -> Program:
    return capture(tiny_model("llama"))


@pytest.fixture
def program(captured: Program) -> Program:
    """A language model of 128 tokens of context, whose tokens are letters."""
    info = dataclasses.replace(captured.info, name="tiny", tokenizer_json=tokenizer_json())
    return dataclasses.replace(captured, info=info)


def ids(program: Program, text: str) -> torch.Tensor:
    tokenizer = Tokenizer.from_str(program.info.tokenizer_json or "")
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def rows(made: Calibration) -> list[list[int]]:
    return [sample[0].tolist() for sample in made.samples]


# --- text -------------------------------------------------------------------------------------


def test_text_is_cut_into_pieces_of_which_some_are_picked(program: Program) -> None:
    made = build_calibration(program, [WORDS], samples=20, sequence_length=64)
    pieces = ids(program, WORDS)[: len(WORDS) // 64 * 64].reshape(-1, 64).tolist()
    assert len(made) == 20
    places = [pieces.index(row) for row in rows(made)]
    assert len(set(places)) == 20
    assert places != sorted(places)


def test_texts_are_put_one_after_the_other(program: Program) -> None:
    halves = [WORDS[:700], WORDS[700:]]
    whole = build_calibration(program, [WORDS], sequence_length=64)
    assert build_calibration(program, halves, sequence_length=64).digest == whole.digest


def test_the_seed_decides(program: Program) -> None:
    first, again, other = (
        build_calibration(program, [WORDS], samples=9, sequence_length=64, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.digest == again.digest != other.digest


def test_the_global_random_state_is_left_alone(program: Program) -> None:
    before = torch.get_rng_state()
    build_calibration(program, [WORDS])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_sample_has_the_begin_token_first(program: Program) -> None:
    program.info = dataclasses.replace(program.info, begin_token=BEGIN)
    made = build_calibration(program, [WORDS], sequence_length=64)
    pieces = ids(program, WORDS)[: len(WORDS) // 63 * 63].reshape(-1, 63).tolist()
    assert all(row[0] == BEGIN for row in rows(made))
    assert all(row[1:] in pieces for row in rows(made))


def test_files_are_read(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text(WORDS)
    made = build_calibration(program, file, sequence_length=64)
    assert made.digest == build_calibration(program, [WORDS], sequence_length=64).digest
    assert (made.source, made.generated) == ("words.txt", False)


def test_samples_are_as_long_as_the_context_at_most(program: Program) -> None:
    assert {len(row) for row in rows(build_calibration(program, [WORDS]))} == {128}
    with pytest.raises(UsageError, match=r"of 129 tokens do not fit the context of tiny, .* 128"):
        build_calibration(program, [WORDS], sequence_length=129)


def test_what_there_is_is_used_and_said(program: Program) -> None:
    request = check_calibration([WORDS[:1000]], samples=50, sequence_length=64)
    made = request.build(program)
    assert len(made) == 15
    assert request.shortage(made) == "1 text gives 15 samples; 50 were wanted"
    enough = check_calibration([WORDS[:1000]], samples=15, sequence_length=64)
    assert enough.shortage(enough.build(program)) is None


@pytest.mark.parametrize(
    ("length", "sizes", "message"),
    [
        (511, {}, "1 text has 511 bytes, .* at least 512 tokens are needed, and 65536 are wanted"),
        (130, {"samples": 2, "sequence_length": 66}, "has 130 bytes, .* at least 132 tokens"),
        (127, {"samples": 1}, "has 127 bytes, .* at least 512 tokens"),
    ],
)
def test_too_little_text_is_refused(length: int, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_calibration([WORDS[:length]], **sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "has 300 tokens, .* to calibrate on; 512 are the least for samples of 128, and 16384"),
        ({"sequence_length": 100}, "300 tokens, .*; 512 are the least for samples of 100, and 128"),
        ({"samples": 3, "sequence_length": 125}, "300 tokens, .*; 375 are the least for .* 125"),
    ],
)
def test_too_few_tokens_are_refused(program: Program, sizes: dict[str, int], message: str) -> None:
    # As many bytes as are needed.
    program.info = dataclasses.replace(program.info, tokenizer_json=_characters())
    with pytest.raises(UsageError, match=message):
        build_calibration(program, ["ü" * 300], **sizes)


def _characters() -> str:
    return Tokenizer(models.BPE(vocab={"ü": 1, "?": 0}, merges=[], unk_token="?")).to_str()


def test_a_model_without_a_tokenizer_reads_tokens_only(captured: Program) -> None:
    with pytest.raises(QCompilerError, match=r"has no tokenizer; put its tokenizer\.json"):
        build_calibration(captured, [WORDS])
    assert len(build_calibration(captured, torch.arange(2560) % 256, sequence_length=64)) == 40


# --- tokens -----------------------------------------------------------------------------------


def test_running_tokens_are_treated_as_text(program: Program) -> None:
    tokens = ids(program, WORDS)
    by_text = build_calibration(program, [WORDS], samples=5, sequence_length=64)
    whole, parts = (
        build_calibration(program, given, samples=5, sequence_length=64)
        for given in (tokens, [tokens[:333].int(), tokens[333:].int()])
    )
    assert by_text.digest == whole.digest == parts.digest


def test_rows_are_samples_as_they_are(program: Program) -> None:
    tokens = torch.arange(120).reshape(4, 30)
    made = build_calibration(program, tokens)
    assert sorted(rows(made)) == tokens.tolist()
    assert sorted(rows(build_calibration(program, [tokens[:1], tokens[1:]]))) == tokens.tolist()
    cut = build_calibration(program, tokens, samples=2, sequence_length=7)
    assert all(row in tokens[:, :7].tolist() for row in rows(cut))
    assert len(cut) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(600), "tokens are whole numbers; the calibration has torch.float32"),
        (torch.arange(600), "token 599 of the calibration is not in the vocabulary of tiny"),
        (-torch.ones(600, dtype=torch.int64), "token -1 of the calibration"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"has shape \[2, 3, 4\]; give running tokens"),
        (torch.zeros(0, 4, dtype=torch.int64), r"has shape \[0, 4\]"),
        (torch.zeros(5, dtype=torch.int64), "has 5 tokens, which is too little"),
        ([torch.zeros(5).long(), torch.zeros(2, 5).long()], "of one and of two dimensions"),
        (torch.zeros(2, 200, dtype=torch.int64), "of 200 tokens do not fit the context of tiny"),
        ([(torch.zeros(5), torch.zeros(5))], "tiny is a language model; calibrate it on text"),
        (
            Calibration(samples=((torch.zeros(1, 5).long(),),), source="mine"),
            "sample 0 is not one tensor of tokens",
        ),
    ],
)
def test_tokens_that_do_not_fit_are_refused(program: Program, given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_calibration(program, given)


def test_samples_that_are_made_already_are_taken(program: Program) -> None:
    made = Calibration(samples=((torch.arange(9),),), source="mine")
    assert build_calibration(program, made) is made
    with pytest.raises(UsageError, match="made of samples already"):
        build_calibration(program, made, samples=3)


# --- encoders and other modules ---------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> Program:
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    program = capture(random_weights(transformers.BertModel(config, add_pooling_layer=False)))
    text = tokenizer_json(**{"[CLS]": 96, "[SEP]": 97})
    program.info = dataclasses.replace(program.info, name="bert", tokenizer_json=text)
    return program


def test_an_encoder_reads_lines_of_files(encoder: Program, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n\n".join(f"a line of text, number {i}" for i in range(40)) + "\n" + "x" * 99)
    made = build_calibration(encoder, file)
    assert len(made) == 41
    for tokens, mask in made.samples:
        assert tokens.shape == mask.shape
        assert (tokens[0, 0], tokens[0, -1]) == (96, 97)
        assert bool((mask == 1).all())
    assert max(tokens.shape[1] for tokens, _ in made.samples) == 40


def test_an_encoder_reads_each_text_of_a_list(encoder: Program) -> None:
    texts = [f"{i} two\nlines" for i in range(60)]
    made = build_calibration(encoder, texts, samples=50, sequence_length=11)
    assert len(made) == 50
    assert all(tokens.shape == (1, 11) for tokens, _ in made.samples)


def test_too_little_text_for_an_encoder(encoder: Program) -> None:
    with pytest.raises(UsageError, match="gives 20 samples with 220 tokens, which is too little"):
        build_calibration(encoder, ["x" * 30] * 20, sequence_length=11)


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x @ y


@pytest.fixture(scope="module")
def module() -> Program:
    size = torch.export.Dim("size", min=2)
    return capture(
        TwoInputs(),
        example_inputs=(torch.rand(3, 4), torch.rand(4, 3)),
        dynamic_shapes={"x": {0: size}, "y": {1: size}},
    )


def test_a_module_takes_tuples_of_its_inputs(module: Program) -> None:
    given = [(torch.full((n, 4), float(n)), torch.rand(4, n)) for n in (2, 3, 5)]
    made = build_calibration(module, given)
    assert sorted(len(x) for x, _ in made.samples) == [2, 3, 5]
    assert made.source == "3 sets of inputs"
    assert len(build_calibration(module, given, samples=2)) == 2


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((torch.rand(2, 4),), "sample 0 has 1 tensors; TwoInputs takes 2: x, y"),
        ((torch.rand(2, 4), torch.rand(5, 2)), r"'y' is float32\[5, 2\]; TwoInputs takes float32"),
        ((torch.rand(2, 4), torch.rand(4, 3)), r"'y' is float32\[4, 3\]"),
        ((torch.rand(2, 4), torch.rand(4)), r"'y' is float32\[4\]"),
        ((torch.rand(2, 4), torch.rand(4, 2).double()), r"'y' is float64\[4, 2\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    module: Program, sample: tuple[torch.Tensor, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_calibration(module, [sample])


def test_a_module_does_not_read_text(module: Program) -> None:
    with pytest.raises(UsageError, match="TwoInputs does not read text"):
        build_calibration(module, [WORDS])
    with pytest.raises(UsageError, match="only a language model can write its own"):
        build_calibration(module)
    with pytest.raises(UsageError, match="a sequence length goes with text and tokens"):
        build_calibration(module, [(torch.rand(2, 4), torch.rand(4, 2))], sequence_length=9)


# --- text that the model writes ---------------------------------------------------------------


def test_without_a_text_the_model_writes_one(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def generate(program: Program, **options: Any) -> torch.Tensor:
        asked.append(options)
        return torch.zeros(options["samples"], options["sequence_length"], dtype=torch.int64)

    monkeypatch.setattr(calibration, "generate_tokens", generate)
    made = build_calibration(program, seed=3)
    assert (len(made), made.samples[0][0].shape) == (64, (128,))
    assert made.generated
    assert made.source == "text that the model wrote itself (seed 3)"
    assert asked[0]["seed"] == 3
    smaller = build_calibration(program, samples=5, sequence_length=9)
    assert (len(smaller), smaller.samples[0][0].shape) == (5, (9,))


# --- what is found before the model is there --------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Pass):
    name: ClassVar[str] = "calibrated"
    accepts: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT})

    needed: bool = True

    @property
    def calibrates(self) -> bool:
        return self.needed

    def run(self, program: Program, context: PassContext) -> None:
        raise AssertionError


def test_a_request_is_made_where_a_step_calibrates() -> None:
    found = request_calibration([Calibrated()], [WORDS], samples=3)
    assert found is not None
    assert found.samples == 3
    assert request_calibration([Calibrated(needed=False)]) is None
    trained = request_calibration([Calibrated(), TrainFakeQuant()], [WORDS])
    assert trained is not None
    assert trained.sizes == TrainFakeQuant.sample_sizes
    assert request_calibration([]) is None


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"given": [WORDS]}, "calibration"),
        ({"samples": 3}, "samples"),
        ({"sequence_length": 64}, "sequence length"),
    ],
)
def test_what_would_not_be_used_is_refused(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=f"no pass of this pipeline runs .* the {what} would not"):
        request_calibration([Calibrated(needed=False)], **asked)


def test_what_cannot_write_text_needs_some() -> None:
    with pytest.raises(UsageError, match="pass 'calibrated' runs the model on samples, and only a"):
        request_calibration([Calibrated()], writes=False)
    assert request_calibration([Calibrated()], [WORDS], writes=False) is not None
    assert request_calibration([Calibrated(needed=False)], writes=False) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samples": 0}, "samples is 0; give a whole number from 1"),
        ({"samples": 2.5}, r"samples is 2\.5"),
        ({"samples": True}, "samples is True"),
        ({"sequence_length": 1}, "sequence_length is 1; give a whole number from 2"),
        ({"seed": -1}, "seed is -1; give a whole number from 0"),
        ({"seed": 2**63}, "seed is"),
        ({"given": ["short"]}, "1 text has 5 bytes, which is too little"),
        ({"given": Path("no.txt")}, "there is no text file no.txt"),
    ],
)
def test_mistakes_are_found_without_the_model(asked: dict[str, Any], message: str) -> None:
    check: list[Callable[..., Any]] = [
        check_calibration,
        lambda **options: request_calibration([Calibrated()], **options),
    ]
    for function in check:
        with pytest.raises(UsageError, match=message):
            function(**asked)
