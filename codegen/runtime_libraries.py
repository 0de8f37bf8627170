"""The small shared libraries that compiled models run on, for every architecture.

Those of this machine's architecture are installed with TVM. Those of another are in the wheel of
the same version for that architecture: it is downloaded once, by pip, or handed over by the user,
and the one file that is wanted is kept in the user's cache. Nothing here loads TVM.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from qcompiler.core.cache import cache_folder, write_cached
from qcompiler.core.errors import UnsupportedError, UsageError
from qcompiler.core.target import host_arch

_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_OLDEST_LINUX = "manylinux_2_28"  # the C library's version that wheels ask for


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library, and where it lies in the wheels of a package."""

    package: str
    member: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.member.rpartition("/")[2]

    @property
    def version(self) -> str:
        """The version that is installed here, and with which compiled models must run."""
        return self.installed.version

    @property
    def installed(self) -> Distribution:
        """The package as installed here; UnsupportedError if it is not."""
        try:
            return distribution(self.package)
        except PackageNotFoundError:
            raise UnsupportedError(
                f"{self.name} comes with {self.package}, which is not installed; "
                "get it with: pip install 'qcompiler[compiler]'"
            ) from None

    def command(self, arch: str) -> list[str]:
        """What to type after `pip` to download the wheel for an architecture."""
        only = ["--only-binary=:all:", "--no-deps", f"{self.package}=={self.version}"]
        return ["download", "--platform", f"{_OLDEST_LINUX}_{arch}", *only]


RUNTIME = Library(package="apache-tvm", member="tvm/lib/libtvm_runtime.so")
"""Runs kernels on threads, and the virtual machine."""

FFI = Library(package="apache-tvm-ffi", member="tvm_ffi/lib/libtvm_ffi.so")
"""Loads compiled models, and calls their functions."""

LIBRARIES = (RUNTIME, FFI)


def runtime_library(arch: str) -> Path:
    """Return `libtvm_runtime.so` for an architecture, downloading it once if need be.

    Raises UnsupportedError where it cannot be had.
    """
    return find_library(RUNTIME, arch)


def ffi_library(arch: str) -> Path:
    """Return `libtvm_ffi.so` for an architecture, downloading it once if need be.

    Raises UnsupportedError where it cannot be had.
    """
    return find_library(FFI, arch)


def find_library(library: Library, arch: str) -> Path:
    """Return a library for an architecture: as installed, from the cache or from its wheel.

    Raises UnsupportedError where it cannot be had.
    """
    _check(arch)
    if arch == host_arch():
        return _installed(library)
    kept = cache_folder() / _place(library, arch)
    if kept.is_file() and _is_for(kept.read_bytes(), arch):
        return kept
    return _download(library, arch)


def has_library(library: Library, arch: str) -> bool:
    """Say whether a library is at hand, without a download."""
    return arch == host_arch() or (cache_folder() / _place(library, arch)).is_file()


def install_wheel(wheel: Path, arch: str) -> Path:
    """Keep the library of a wheel for an architecture; return where.

    Raises UsageError where the file is not a wheel of that architecture, or of another version.
    """
    _check(arch)
    try:
        with zipfile.ZipFile(wheel) as archive:
            library = _check_wheel(archive, wheel)
            data = archive.read(library.member)
            _check_hash(archive, library.member, data, wheel)
    except FileNotFoundError:
        raise UsageError(f"there is no file {wheel}") from None
    except (OSError, zipfile.BadZipFile, KeyError) as problem:
        raise UsageError(f"{wheel} cannot be read as a wheel of TVM: {problem}") from None
    if not _is_for(data, arch):
        raise UsageError(f"{library.name} in {wheel} is not for {arch}")
    if not write_cached(_place(library, arch), data):
        raise UsageError(
            f"{library.name} for {arch} cannot be kept in {cache_folder()}; "
            "name a folder that can be written to in QCOMPILER_CACHE"
        )
    return cache_folder() / _place(library, arch)


def _check(arch: str) -> None:
    if arch not in _ELF_MACHINES:
        known = ", ".join(sorted(_ELF_MACHINES))
        raise UnsupportedError(f"TVM's runtime is published for {known}, and not for {arch}")


def _installed(library: Library) -> Path:
    path = Path(str(library.installed.locate_file(library.member)))
    if not path.is_file():
        raise UnsupportedError(f"{path} is missing; install {library.package} again")
    return path


def _place(library: Library, arch: str) -> str:
    return f"libraries/{library.package}-{library.version}/{arch}/{library.name}"


def _download(library: Library, arch: str) -> Path:
    command = library.command(arch)
    with tempfile.TemporaryDirectory(prefix="qcompiler-wheel-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pip", *command, "--quiet", "--dest", folder],
            capture_output=True,
            text=True,
        )
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise UnsupportedError(
                f"{library.name} for {arch} is in the wheel of {library.package} "
                f"{library.version}, which could not be downloaded ({_last_line(done.stderr)}); "
                f"where there is a network, run: pip {' '.join(command)}, and hand the wheel over "
                f"with: qcompiler targets --install {arch} --wheel FILE"
            )
        return install_wheel(wheels[0], arch)


def _last_line(text: str) -> str:
    """What pip said at last that is an error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return errors[-1].removeprefix("ERROR: ").rstrip(".") if errors else "pip said nothing"


def _check_wheel(archive: zipfile.ZipFile, wheel: Path) -> Library:
    """Return the library that a wheel is expected to carry, after checking its version."""
    metadata = HeaderParser().parsestr(_text(archive, ".dist-info/METADATA"))
    name, version = metadata["Name"], metadata["Version"]
    for library in LIBRARIES:
        if library.package == name:
            if version != library.version:
                raise UsageError(
                    f"{wheel} is {name} {version}, and models are compiled for {library.version}"
                )
            return library
    known = " nor ".join(library.package for library in LIBRARIES)
    raise UsageError(f"{wheel} is a wheel of {name}, neither {known}")


def _check_hash(archive: zipfile.ZipFile, member: str, data: bytes, wheel: Path) -> None:
    """Compare a file with the hash that its wheel has of it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    rows = (line.split(",") for line in _text(archive, ".dist-info/RECORD").splitlines())
    if not any(row[:2] == [member, f"sha256={digest}"] for row in rows):
        raise UsageError(f"{member} in {wheel} is not the file that the wheel was made with")


def _text(archive: zipfile.ZipFile, ending: str) -> str:
    found = [name for name in archive.namelist() if name.endswith(ending)]
    if len(found) != 1:
        raise KeyError(f"its {ending} is missing")
    return archive.read(found[0]).decode()


def _is_for(data: bytes, arch: str) -> bool:
    """Say whether bytes are an ELF file of an architecture: 64 bits, little-endian."""
    machine = _ELF_MACHINES[arch].to_bytes(2, "little")
    return data[:6] == b"\x7fELF\x02\x01" and data[18:20] == machine
