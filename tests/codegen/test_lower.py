"""Whole programs, compiled, against the interpreter of the same LEGAL program."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
import transformers
from torch import nn
from tvm import tirx

from qcompiler.core.interpreter import ProgramInterpreter, TorchLanguageModel
from qcompiler.core.program import Program
from qcompiler.core.reference import sqnr
from qcompiler.core.target import Target
from qcompiler.frontend import capture
from targets import find
from tests.families import FAMILIES, random_weights, tiny_model

pytestmark = pytest.mark.tvm

Legal = Callable[..., Program]
Compiled = Callable[[Program, Target], Any]

NATIVE, AVX2 = "native", "x86-64-v3"
QUICK = ("llama", "gpt2", "qwen3_moe")
"""Families that are tested in the quick loop too."""

SLOW = (
    *("falcon", "gemma2", "granite", "olmo2", "opt-350m-like", "phi", "phi3"),
    *("qwen2-window", "qwen3-yarn", "smollm3", "stablelm-parallel"),
)
"""One family or variant for each thing that the others do not ask of the kernels."""


class Model(Protocol):
    def step(
        self, ids: torch.Tensor, position: int, rows: torch.Tensor, caches: list[torch.Tensor]
    ) -> torch.Tensor: ...


def answers(model: Model, caches: list[torch.Tensor]) -> torch.Tensor:
    """Read a prompt of 15 tokens in two parts, then five tokens one by one; return the logits."""
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(2))
    parts = [model.step(ids[:, :9], 0, torch.arange(9), caches)]
    parts.append(model.step(ids[:, 9:15], 9, torch.tensor([5, 0]), caches))
    last = torch.tensor([0])
    parts += [model.step(ids[:, at : at + 1], at, last, caches) for at in range(15, 20)]
    return torch.cat(parts)


def closeness(program: Program, compiled: Any) -> tuple[float, float, float]:
    """Return decibels: of all logits, of the row that is closest, and of the caches."""
    torch_model = TorchLanguageModel(program)
    expected_caches, caches = (torch_model.new_caches(24) for _ in range(2))
    expected = answers(torch_model, expected_caches)
    actual = answers(compiled, caches)
    rows = [sqnr(theirs, ours) for theirs, ours in zip(expected, actual, strict=True)]
    kv = min(sqnr(theirs, ours) for theirs, ours in zip(expected_caches, caches, strict=True))
    return sqnr(expected, actual), max(rows), kv


@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)]
)
def test_a_family_in_float(family: str, legal: Legal, compiled: Compiled) -> None:
    target = find(NATIVE)
    program = legal(capture(tiny_model(family)), target)
    logits, _, caches = closeness(program, compiled(program, target))
    assert logits > 100
    assert caches > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scheme", "target"),
    [
        ("llama", "w4a8g32", NATIVE),
        ("llama", "w4a8g32z", AVX2),
        ("gpt2", "w8a8", NATIVE),
        ("gemma2", "w8a8g32", AVX2),
        ("qwen3_moe", "w4a8g64t", NATIVE),
        ("phi", "w8a8g32z", NATIVE),
    ],
)
def test_a_family_in_integers(
    family: str, scheme: str, target: str, legal: Legal, compiled: Compiled
) -> None:
    machine = runnable(target)
    program = legal(capture(tiny_model(family)), machine, scheme)
    logits, closest, _ = closeness(program, compiled(program, machine))
    # The products are exact, but what is between them is float: where a last bit differs just at a
    # half, an activation is rounded to the other code, and the rows that see it keep some 60 dB.
    # No such thing can happen to every row.
    assert closest > 100
    assert logits > 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scheme", "target"),
    [
        ("llama", "w8a8s", NATIVE),
        ("llama", "w4a8g32zs", AVX2),
        ("gpt2", "w4a8s", NATIVE),  # layer norms
        ("gemma2", "w8a8g32s", AVX2),  # a norm behind each product too
    ],
)
def test_a_family_of_static_scales(
    family: str, scheme: str, target: str, legal: Legal, compiled: Compiled
) -> None:
    machine = runnable(target)
    samples = tuple((torch.arange(seed, seed + 30) * 37 % 256,) for seed in range(3))
    program = legal(capture(tiny_model(family)), machine, scheme, samples)
    called = {getattr(node.target, "__name__", "") for node in program.graph.nodes}
    assert called & {"rms_norm_quantize", "layer_norm_quantize"}
    assert "quantize" in called
    run = compiled(program, machine)
    assert "decode" in run.steps
    logits, closest, _ = closeness(program, run)
    assert closest > 100
    assert logits > 30


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt_neox", "gemma3"])
def test_a_family_in_float_on_avx2(family: str, legal: Legal, compiled: Compiled) -> None:
    target = runnable(AVX2)
    program = legal(capture(tiny_model(family)), target)
    logits, _, caches = closeness(program, compiled(program, target))
    assert logits > 100
    assert caches > 100


@pytest.mark.parametrize("scheme", ["float", pytest.param("w4a8g32", marks=pytest.mark.slow)])
def test_layers_share_their_kernels(scheme: str, legal: Legal, compiled: Compiled) -> None:
    target = find(NATIVE)
    kernels, machine_code = [], []
    for layers in (4, 8):
        config = copy.deepcopy(FAMILIES["llama"])
        config.num_hidden_layers = layers
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        run = compiled(legal(capture(random_weights(model)), target, scheme), target)
        functions = run.lowered.module.functions.items()
        kernels.append({v.name_hint for v, f in functions if isinstance(f, tirx.PrimFunc)})
        text = run.executable.mod.imports[0].inspect_source("ll")
        machine_code.append(re.findall(r"^define .*@(\S+)\(", text, re.MULTILINE))
    assert len(kernels[0]) > 10
    assert kernels[0] == kernels[1]
    assert len(machine_code[0]) > len(kernels[0])
    assert machine_code[0] == machine_code[1]


def runnable(name: str) -> Target:
    """Find a target; skip where this machine cannot stand in for it."""
    target = find(name)
    if missing := target.features - find(NATIVE).features:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    return target


# -- other modules ---------------------------------------------------------------------------------


def tiny_bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("scheme", ["float", pytest.param("w8a8g32", marks=pytest.mark.slow)])
def test_an_encoder(scheme: str, legal: Legal, compiled: Compiled) -> None:
    target = find(NATIVE)
    program = legal(capture(tiny_bert()), target, scheme)
    run = compiled(program, target)
    for batch, length in ((1, 7), (3, 20)):
        ids = torch.randint(0, 256, (batch, length))
        mask = (torch.arange(length) < torch.tensor([[length]] + [[5]] * (batch - 1))).long()
        (actual,) = run(ids, mask)
        expected = ProgramInterpreter(program).run(ids, mask)
        expected = expected[0] if isinstance(expected, tuple | list) else expected
        rows = [
            sqnr(e, a) for e, a in zip(expected.flatten(0, 1), actual.flatten(0, 1), strict=True)
        ]
        assert max(rows) > 100
        assert sqnr(expected, actual) > (100 if scheme == "float" else 30)


class Odd(nn.Module):
    """Products of sizes that fill no tile or group, with an activation, biases and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(328, 152), nn.Linear(152, 328, bias=False)
        self.out = nn.Linear(328, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return self.out(x)


@pytest.mark.parametrize(
    ("scheme", "target"),
    [
        ("float", NATIVE),
        ("w8a8", AVX2),
        ("w4a8g128", NATIVE),
        ("w4a8g128z", AVX2),
        ("w8a8g64t", NATIVE),
        ("w4a8g64zt", NATIVE),
        ("w8a8s", NATIVE),
        ("w4a8g64zs", AVX2),
    ],
)
def test_odd_sizes(scheme: str, target: str, legal: Legal, compiled: Compiled) -> None:
    machine = runnable(target)
    torch.manual_seed(0)
    sizes = ({0: torch.export.Dim("t", min=1, max=99)},)
    program = capture(Odd().eval(), example_inputs=(torch.randn(4, 328),), dynamic_shapes=sizes)
    samples = ((torch.randn(20, 328),),) if scheme.endswith("s") else ()
    run = compiled(legal(program, machine, scheme, samples), machine)
    for tokens in (1, 2, 31):
        x = torch.randn(tokens, 328)
        (actual,) = run(x)
        expected = ProgramInterpreter(program).run(x)
        assert sqnr(expected, actual) > (110 if scheme == "float" else 30)
        assert max(sqnr(e, a) for e, a in zip(expected, actual, strict=True)) > 100
