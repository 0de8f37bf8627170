"""Timed programs are the products they are said to be; times are kept by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codegen.kernel_timer import MachineKernelTimer, packed_bytes, product_program
from codegen.lower import lower
from codegen.timing import best_times, code_bytes, stand_ins
from qcompiler.core.formats import QuantScheme
from qcompiler.core.qtensor import QuantizedTensor
from qcompiler.core.stage import Stage
from qcompiler.core.target import Target
from qcompiler.core.verify import verify
from targets import TARGETS, find

W4, W8Z = QuantScheme.parse("w4a8g32"), QuantScheme.parse("w8a8g64z")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def timer() -> MachineKernelTimer:
    return MachineKernelTimer(find("native"), lambda: None)


@pytest.mark.parametrize("scheme", [W4, W8Z, QuantScheme.parse("w8a8s"), None])
@pytest.mark.parametrize("gated", [False, True])
def test_a_product_is_a_legal_program(scheme: QuantScheme | None, gated: bool) -> None:
    program = product_program(96, 128, scheme, 1, gated=gated)
    assert program.stage is Stage.LEGAL
    verify(program)
    products = [node for _, node in program.linears()]
    assert {bool(node.kwargs.get("gated")) for node in products} == {gated}
    assert len({node.args[0] for node in products}) == 1  # all read one x
    assert products[-1].meta["val"].shape == (1, 48 if gated else 96)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("scheme", [W4, W8Z, QuantScheme.parse("w3a8g32"), None])
@pytest.mark.parametrize("gated", [False, True])
def test_packed_bytes_are_those_of_the_artifact(
    target: Target, scheme: QuantScheme | None, gated: bool
) -> None:
    stored = scheme
    if scheme is not None and scheme.weight.bits == 3:
        stored = QuantScheme.parse("w4a8g32")  # legalize widens codes of 3 bits
    program = product_program(72, 136, stored, 1, gated=gated)
    entries = lower(program, target).weights.entries
    count = len(list(program.linears()))
    size = sum(np.dtype(entry.dtype).itemsize * entry.shape[0] for entry in entries)
    assert packed_bytes(target, 72, 136, scheme, gated=gated) == size // count


def test_stand_ins_fit_the_weights_and_differ() -> None:
    program = product_program(64, 64, W8Z, 1, gated=False)
    entries = lower(program, TARGETS[0]).weights.entries
    one, other = dict(stand_ins(entries)), dict(stand_ins(entries, seed=1))
    assert [(e.name, e.dtype, e.shape) for e in entries] == [
        (name, str(array.dtype), array.shape) for name, array in one.items()
    ]
    assert all(np.isfinite(array.astype(np.float32)).all() for array in one.values())
    assert not np.array_equal(one["w0.weight/codes"], other["w0.weight/codes"])
    given = np.arange(code_bytes(entries), dtype=np.uint8)
    taken = [a for _, a in stand_ins(entries, codes=given) if a.dtype == np.uint8]
    assert all(np.shares_memory(array, given) for array in taken)
    assert not np.shares_memory(*taken[:2])


@pytest.mark.tvm
def test_times_are_kept(
    timer: MachineKernelTimer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = timer.linear_seconds(64, 64, W4, 1)
    large = timer.linear_seconds(2048, 1024, W4, 1, stream_bytes=4 << 20)
    # No more is said of them: on a busy machine a small product may take longer than a large one.
    assert small > 0
    assert large > 0
    assert len(list(cache.rglob("kernels/*.json"))) == 2
    # Machine load may have been noted, so that a time is measured anew once it is gone.
    monkeypatch.setattr("codegen.timing.machine_is_busy", lambda: True)
    monkeypatch.setattr(MachineKernelTimer, "_measure", lambda *_: pytest.fail("measured again"))
    assert timer.linear_seconds(64, 64, W4, 1) == small


def test_the_best_of_several_rounds_counts() -> None:
    seen: list[str] = []
    calls = [lambda: seen.append("a"), lambda: seen.append("b")]
    first, second = best_times(calls, lambda: seen.append("ready"))
    assert 0 < first < 1
    assert 0 < second < 1
    assert seen[:8] == ["ready", "a", "ready", "b"] * 2
    assert len(seen) > 4 * 6


def test_a_hollow_weight_has_the_shapes_of_a_real_one() -> None:
    hollow = QuantizedTensor.hollow(8, 70, W8Z.weight)
    assert hollow.shape == (8, 70)
    assert hollow.scale.shape == (8, 2)
    assert hollow.zero_point is not None
    assert hollow.codes.dtype == torch.uint8
    assert hollow.codes.device.type == "meta"
