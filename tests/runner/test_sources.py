"""The sources say nothing to a compiler: as written, and for other machines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qcompiler.runner.libraries import headers
from tests.runner_program import SOURCE

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


@pytest.mark.parametrize("compiler", ["g++", "clang++", "aarch64-linux-gnu-g++"])
def test_no_compiler_has_a_word_to_say(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for name, path in headers().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    (tmp_path / "version.h").write_text('#define QC_TVM_VERSION "0"\n')
    sources = [SOURCE / "main.cc", *sorted((SOURCE / "src").glob("*.cc"))]
    # One after the other in one go: most of the time goes to the library's headers.
    whole = "".join(f'#include "{path}"\n' for path in sources)
    (tmp_path / "all.cc").write_text(whole)
    folders = [f"-I{SOURCE / 'include'}", "-isystem", str(tmp_path)]
    subprocess.run(
        [compiler, "-std=c++17", "-fsyntax-only", *WARNINGS, *folders, tmp_path / "all.cc"],
        check=True,
    )


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_header_is_plain_c(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    (tmp_path / "use.c").write_text('#include "qcompiler.h"\nint main(void) { return 0; }\n')
    include = f"-I{SOURCE / 'include'}"
    strict = ["-std=c99", "-Wstrict-prototypes", *WARNINGS]
    subprocess.run([compiler, *strict, include, "-fsyntax-only", tmp_path / "use.c"], check=True)
