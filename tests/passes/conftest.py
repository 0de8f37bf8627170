"""A small canonical Llama built by hand, ways to run passes and programs, and golden text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import fx

from qcompiler.core import ops
from qcompiler.core.builder import ProgramBuilder
from qcompiler.core.instruments import CheckShapes, dump
from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.pass_base import Pass, PassContext
from qcompiler.core.pipeline import Pipeline
from qcompiler.core.program import KvCache, ModelInfo, Program
from qcompiler.core.target import Target
from tests.machine import machine

aten = torch.ops.aten

HIDDEN, HEADS, KV_HEADS, SIZE, INNER, VOCABULARY = 64, 4, 2, 16, 96, 40
Q, KV = HEADS * SIZE, KV_HEADS * SIZE

TARGET = machine("w4a8*", "w8a8*")

Run = Callable[..., PassContext]


class TinyLlama:
    """Builds a Llama of two layers; its parts can be called for graphs of another make."""

    def __init__(self, *, layers: int = 1, biases: str = "", tied: bool = True) -> None:
        self.layers, self.biases, self.tied = layers, biases, tied
        self.build = ProgramBuilder(self._weights())
        if tied:
            self.build.weights.alias("lm_head.weight", "model.embed_tokens.weight")

    def _weights(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * 0.3

        weights = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN)}
        if not self.tied:
            weights["lm_head.weight"] = random(VOCABULARY, HIDDEN)
        for layer in range(self.layers):
            shapes = {
                "input_layernorm": (HIDDEN,),
                "self_attn.q_proj": (Q, HIDDEN),
                "self_attn.k_proj": (KV, HIDDEN),
                "self_attn.v_proj": (KV, HIDDEN),
                "self_attn.o_proj": (HIDDEN, Q),
                "post_attention_layernorm": (HIDDEN,),
                "mlp.gate_proj": (INNER, HIDDEN),
                "mlp.up_proj": (INNER, HIDDEN),
                "mlp.down_proj": (HIDDEN, INNER),
            }
            for name, shape in shapes.items():
                weights[f"model.layers.{layer}.{name}.weight"] = random(*shape)
                if name.rpartition(".")[2][0] in self.biases and len(shape) == 2:
                    weights[f"model.layers.{layer}.{name}.bias"] = random(shape[0])
        weights["model.norm.weight"] = random(HIDDEN)
        weights["model.rotary.inv_freq"] = 10000.0 ** -(torch.arange(SIZE // 2) * 2 / SIZE)
        return weights

    def linear(self, x: fx.Node, name: str) -> fx.Node:
        arguments = [self.build.weight(f"{name}.weight")]
        if f"{name}.bias" in self.build.weights:
            arguments.append(self.build.weight(f"{name}.bias"))
        return self.build.call(ops.linear, x, *arguments)

    def norm(self, x: fx.Node, name: str) -> fx.Node:
        return self.build.call(ops.rms_norm, x, self.build.weight(f"{name}.weight"), eps=1e-6)

    def heads(self, x: fx.Node, count: int) -> fx.Node:
        return self.build.call(aten.reshape.default, x, [1, -1, count, SIZE])

    def program(self) -> Program:
        build, call = self.build, self.build.call
        ids = build.input("ids", (1, "s"), torch.int64)
        position = build.input("position", (1,), torch.int64)
        rows = build.input("rows", ("r",), torch.int64)
        shape = (1, KV_HEADS, "c", SIZE)
        caches = [
            (build.input(f"k_cache_{i}", shape), build.input(f"v_cache_{i}", shape))
            for i in range(self.layers)
        ]
        places = call(aten.arange.default, call(aten.sym_size.int, ids, 1))
        places = call(aten.add.Tensor, places, position)
        column = call(aten.reshape.default, call(aten.to.dtype, places, torch.float32), [1, -1, 1])
        angles = call(aten.mul.Tensor, column, build.weight("model.rotary.inv_freq"))
        turn = (call(aten.cos.default, angles), call(aten.sin.default, angles))
        x = call(ops.embedding, ids, build.weight("model.embed_tokens.weight"))
        for i in range(self.layers):
            x = self.layer(x, f"model.layers.{i}", turn, caches[i], position)
        x = self.norm(call(aten.index_select.default, x, 1, rows), "model.norm")
        table = "model.embed_tokens" if self.tied else "lm_head"
        info = ModelInfo(
            name="tiny",
            kind="causal-lm",
            architecture="llama",
            vocab_size=VOCABULARY,
            kv=(KvCache(heads=KV_HEADS, head_dim=SIZE),) * self.layers,
        )
        return build.finish(self.linear(x, table), info)

    def layer(
        self,
        x: fx.Node,
        name: str,
        turn: tuple[fx.Node, fx.Node],
        caches: tuple[fx.Node, fx.Node],
        position: fx.Node,
    ) -> fx.Node:
        call = self.build.call
        h = self.norm(x, f"{name}.input_layernorm")
        q = self.heads(self.linear(h, f"{name}.self_attn.q_proj"), HEADS)
        k = self.heads(self.linear(h, f"{name}.self_attn.k_proj"), KV_HEADS)
        v = self.heads(self.linear(h, f"{name}.self_attn.v_proj"), KV_HEADS)
        q, k = call(ops.rotary, q, *turn), call(ops.rotary, k, *turn)
        y = call(ops.attention, q, k, v, *caches, position, scale=SIZE**-0.5)
        y = call(aten.reshape.default, y, [1, -1, Q])
        x = call(aten.add.Tensor, x, self.linear(y, f"{name}.self_attn.o_proj"))
        h = self.norm(x, f"{name}.post_attention_layernorm")
        gate = call(aten.silu.default, self.linear(h, f"{name}.mlp.gate_proj"))
        up = self.linear(h, f"{name}.mlp.up_proj")
        down = self.linear(call(aten.mul.Tensor, gate, up), f"{name}.mlp.down_proj")
        return call(aten.add.Tensor, x, down)


@pytest.fixture
def tiny_llama() -> Callable[..., Program]:
    """Return a function that builds a small Llama."""
    return lambda **options: TinyLlama(**options).program()


@pytest.fixture
def run_pass() -> Run:
    """Return a function that runs passes on a program, with all checks there are."""

    def run(program: Program, *steps: Pass, target: Target = TARGET) -> PassContext:
        context = PassContext(target=target)
        Pipeline(steps, start=program.stage).run(program, context, [CheckShapes()])
        return context

    return run


@pytest.fixture
def logits() -> Callable[[Program], torch.Tensor]:
    """Return a function that runs a language model: five tokens at once, then two one by one."""

    def run(program: Program) -> torch.Tensor:
        model = TorchLanguageModel(program)
        tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
        caches = model.new_caches(8)
        parts = [model.step(tokens[:, :5], 0, torch.tensor([0, 2, 4]), caches)]
        for place in (5, 6):
            step = model.step(tokens[:, place : place + 1], place, torch.tensor([0]), caches)
            parts.append(step)
        return torch.cat(parts)

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Program], None]:
    """Return a function that compares a program with the text in `golden/<test>.txt`.

    Set QCOMPILER_UPDATE_GOLDEN=1 to write what the program is now.
    """
    path = Path(__file__).parent / "golden" / f"{request.node.name.removeprefix('test_')}.txt"

    def compare(program: Program) -> None:
        text = dump(program)
        if os.environ.get("QCOMPILER_UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
