"""How many threads compiled functions run on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qcompiler.core.errors import UsageError
from qcompiler.runtime import LanguageModel, load
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.workers import Workers


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_no_such_number_of_threads(threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads!r}; give a number from 1 to"):
        Workers(threads)


def test_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.runtime.workers.available_cpus", lambda: ([0, 1], 1))
    with pytest.raises(UsageError, match="3 threads are too many: this process may use 2"):
        Workers(3)
    assert Workers(2).count == 2
    assert Workers().count == 1


@pytest.mark.tvm
def test_pool_has_that_many_threads_and_the_caller_stays_free(lm_folder: Path) -> None:
    """In a thread of its own: TVM keeps a pool for every thread that calls it."""
    found: dict[int, tuple[int, set[int]]] = {}

    def work(threads: int) -> None:
        model = load(lm_folder, threads=threads)
        assert isinstance(model, LanguageModel)
        model.logits([1, 2, 3])
        count = bindings().get_global_func("runtime.NumThreads")()
        found[threads] = (count, os.sched_getaffinity(0))

    cpus = os.sched_getaffinity(0)
    for threads in range(1, min(len(cpus), 3) + 1):
        thread = threading.Thread(target=work, args=(threads,))
        thread.start()
        thread.join()
        assert found[threads] == (threads, cpus)


@pytest.mark.tvm
def test_number_of_threads_can_change_in_one_thread(lm_folder: Path) -> None:
    counts: list[int] = []

    def work() -> None:
        for threads in (1, len(os.sched_getaffinity(0)), 1):
            with load(lm_folder, threads=threads) as model:
                assert isinstance(model, LanguageModel)
                model.logits([1, 2, 3])
                counts.append(bindings().get_global_func("runtime.NumThreads")())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == [1, len(os.sched_getaffinity(0)), 1]
