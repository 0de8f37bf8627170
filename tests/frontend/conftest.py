"""Tiny random models of every family, and how far a program is from one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from qcompiler.core.interpreter import TorchLanguageModel
from qcompiler.core.program import Program
from tests import families


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a `family` once for each."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", families.FAMILIES)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever reaches for a network."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """Build a tiny random model of a family."""
    return families.tiny_model


@pytest.fixture
def difference() -> Callable[[Program, PreTrainedModel], float]:
    """Measure the largest difference of logits: a prompt of 15 tokens, then five, one by one."""

    def measure(program: Program, model: PreTrainedModel) -> float:
        ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits[0]
        lm = TorchLanguageModel(program)
        caches = lm.new_caches(24)
        prompt = lm.step(ids[:, :15], 0, torch.arange(15), caches)
        last = torch.tensor([0])
        more = [lm.step(ids[:, p : p + 1], p, last, caches) for p in range(15, 20)]
        return (torch.cat([prompt, *more]) - expected).abs().max().item()

    return measure
