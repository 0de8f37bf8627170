"""The threads that compiled functions run on."""

from __future__ import annotations

import os
import threading

from qcompiler.core.errors import UsageError
from qcompiler.runtime.ffi import bindings
from qcompiler.runtime.machine import available_cpus

_SHARE_ALL = -3  # TVM's mode in which every thread may run on every processor it is given
_configured = threading.local()


class Workers:
    """A number of threads, the calling one included.

    TVM keeps a pool of threads for every thread that calls it. Left alone it gives it half the
    processors of an x86 machine, taking the others for hardware threads, and binds each to one.
    Here they are free to move: bound threads gained 5 % in the best of many calls of very short
    kernels, and took ten times as long as free ones on a machine that had other work.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Take `threads` of them, or one for each core this process may use.

        Raises UsageError when there are not so many processors.
        """
        self._cpus, worthwhile = available_cpus()
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"threads is {threads!r}; give a number from 1 to {len(self._cpus)}")
        if threads is not None and threads > len(self._cpus):
            raise UsageError(
                f"{threads} threads are too many: this process may use {len(self._cpus)} processors"
            )
        self.count = threads or worthwhile

    def prepare(self) -> int:
        """Give the calling thread's pool this number of threads; call it before every function.

        Return how many there are: a function that waits for more would wait for ever.
        """
        if getattr(_configured, "count", None) == self.count:
            return self._running()
        before = os.sched_getaffinity(0)
        # A pool cannot grow, so it is made with a thread for every processor, idle or not.
        configure = bindings().get_global_func("runtime.config_threadpool")
        configure(_SHARE_ALL, self.count, [str(cpu) for cpu in self._cpus])
        # The call binds the calling thread too, which is not ours.
        os.sched_setaffinity(0, before)
        _configured.count = self.count
        _configured.threads = bindings().get_global_func("runtime.NumThreads")()
        return self._running()

    def _running(self) -> int:
        threads: int = _configured.threads
        return min(self.count, threads)
