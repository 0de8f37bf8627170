"""Libraries of the runtime: installed, or in wheels, and what may be wrong with a wheel."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import pytest

from codegen.runtime_libraries import (
    FFI,
    LIBRARIES,
    RUNTIME,
    Library,
    ffi_library,
    has_library,
    install_wheel,
    runtime_library,
)
from qcompiler.core.errors import UnsupportedError, UsageError
from qcompiler.core.target import host_arch

OTHER = {"x86_64": "aarch64", "aarch64": "x86_64"}[host_arch()]
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("QCOMPILER_CACHE", str(place))
    return place


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that nothing listens at."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def elf(arch: str) -> bytes:
    """The beginning of a shared library, and something that differs from others."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + bytes([ELF_MACHINES[arch], 0])
    return header + bytes(44) + arch.encode()


def make_wheel(
    path: Path,
    library: Library,
    data: bytes,
    *,
    name: str | None = None,
    version: str | None = None,
    recorded: bytes | None = None,
) -> Path:
    info = "anything.dist-info"
    digest = hashlib.sha256(data if recorded is None else recorded).digest()
    encoded = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(library.member, data)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name or library.package}\n"
            f"Version: {version or library.version}\n\nText.\n",
        )
        archive.writestr(f"{info}/RECORD", f"{library.member},sha256={encoded},{len(data)}\n")
    return path


def test_those_of_this_machine_are_installed() -> None:
    for library, path in ((RUNTIME, runtime_library(host_arch())), (FFI, ffi_library(host_arch()))):
        assert path.name == library.name
        assert path.read_bytes()[18] == ELF_MACHINES[host_arch()]
        assert has_library(library, host_arch())


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_a_wheel_is_kept_and_found(library: Library, tmp_path: Path, offline: None) -> None:
    wheel = make_wheel(tmp_path / "any.whl", library, elf(OTHER))
    assert not has_library(library, OTHER)
    kept = install_wheel(wheel, OTHER)
    assert has_library(library, OTHER)
    find = runtime_library if library is RUNTIME else ffi_library
    assert find(OTHER) == kept
    assert kept.read_bytes() == elf(OTHER)


def test_a_wheel_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"there is no file missing\.whl"):
        install_wheel(Path("missing.whl"), OTHER)


def test_a_file_that_is_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(UsageError, match=r"text\.whl cannot be read as a wheel of TVM"):
        install_wheel(tmp_path / "text.whl", OTHER)
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(UsageError, match="METADATA is missing"):
        install_wheel(tmp_path / "empty.whl", OTHER)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"version": "0.1"}, f"is apache-tvm 0.1, and models are compiled for {RUNTIME.version}"),
        ({"name": "numpy"}, "is a wheel of numpy, neither apache-tvm nor apache-tvm-ffi"),
        ({"recorded": b"other"}, "is not the file that the wheel was made with"),
    ],
)
def test_a_wheel_of_something_else(tmp_path: Path, wrong: dict[str, str], message: str) -> None:
    wheel = make_wheel(tmp_path / "any.whl", RUNTIME, elf(OTHER), **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        install_wheel(wheel, OTHER)
    assert not has_library(RUNTIME, OTHER)


def test_a_wheel_of_another_architecture(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "any.whl", RUNTIME, elf(host_arch()))
    with pytest.raises(UsageError, match=f"is not for {OTHER}"):
        install_wheel(wheel, OTHER)


def test_without_a_network_the_message_says_what_to_do(offline: None) -> None:
    with pytest.raises(UnsupportedError) as caught:
        runtime_library(OTHER)
    text = str(caught.value)
    assert f"--platform manylinux_2_28_{OTHER} " in text
    assert f"apache-tvm=={RUNTIME.version}" in text
    assert f"qcompiler targets --install {OTHER} --wheel FILE" in text


def test_what_was_damaged_in_the_cache_is_fetched_again(cache: Path, offline: None) -> None:
    place = cache / f"libraries/{RUNTIME.package}-{RUNTIME.version}/{OTHER}/{RUNTIME.name}"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"half of i")
    with pytest.raises(UnsupportedError, match="could not be downloaded"):
        runtime_library(OTHER)


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "file" / "below"))
    wheel = make_wheel(tmp_path / "any.whl", RUNTIME, elf(OTHER))
    with pytest.raises(UsageError, match=r"cannot be kept in .* QCOMPILER_CACHE"):
        install_wheel(wheel, OTHER)


def test_an_architecture_that_tvm_has_no_wheels_for() -> None:
    with pytest.raises(
        UnsupportedError, match="published for aarch64, x86_64, and not for riscv64"
    ):
        runtime_library("riscv64")
