"""What compiled code prints is kept off the standard output, and nothing else is."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import ctypes
from passes.silence import silence
libc = ctypes.CDLL(None)
print("before")
libc.puts(b"compiled before")
with silence():
    libc.puts(b"noise")
print("after", flush=True)
libc.puts(b"compiled after")
"""


def test_only_the_noise_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split("\n")) == sorted(
        ["before", "compiled before", "after", "compiled after", ""]
    )
