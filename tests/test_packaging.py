"""What an installation holds and loads, and that its parts are called what they should be."""

from __future__ import annotations

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import qcompiler
from qcompiler.core.formats import QuantScheme
from qcompiler.presets import FOLDER, find_pipeline, preset_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("qcompiler", "passes", "codegen", "targets")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- import ------------------------------------------------------------------------------------


def test_import_is_instant() -> None:
    """Of several tries the fastest, beyond what Python itself takes, in processor time."""
    plain = min(_seconds("pass") for _ in range(7))
    ours = min(_seconds("import qcompiler") for _ in range(7))
    assert ours - plain < 0.02


def _seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python(code).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_loads_nothing_else() -> None:
    done = python(
        "import sys; before = set(sys.modules); import qcompiler\n"
        "print(sorted(n.partition('.')[0] for n in set(sys.modules) - before))"
    )
    assert set(ast.literal_eval(done.stdout)) <= {
        *("__future__", "_warnings", "importlib", "qcompiler", "warnings")
    }


def test_every_public_name_has_a_home() -> None:
    assert set(qcompiler.__all__) - {"__version__"} == qcompiler._HOMES.keys()
    assert set(qcompiler.__all__) <= set(dir(qcompiler))
    for name in qcompiler.__all__:
        assert getattr(qcompiler, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'complie'"):
        _ = qcompiler.complie


@pytest.mark.parametrize("name", ["passes", "codegen", "targets"])
def test_a_stranger_of_the_same_name_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import qcompiler"
    done = python(code)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the package '{name}' that qcompiler needs is hidden by")
    assert str(tmp_path / name) in last
    assert "virtual environment" in last


def test_a_stranger_that_was_imported_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "passes.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import passes\n"
        "sys.path.pop(0); import qcompiler"
    )
    done = python(code)
    assert f"hidden by another one of that name in {tmp_path / 'passes.py'}" in done.stderr


@pytest.mark.parametrize("name", ["passes", "codegen", "targets"])
def test_a_stranger_in_our_own_folder_is_named(name: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        shutil.copy(ROOT / package / "__init__.py", tmp_path / package)
    (tmp_path / name / "__init__.py").write_text("VERSION = 3\n")
    done = python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import qcompiler")
    file = tmp_path / name / "__init__.py"
    assert f"another distribution has written over qcompiler's file {file}" in done.stderr


def test_a_folder_without_code_hides_nothing(tmp_path: Path) -> None:
    """A folder of one's own called `targets`, say of build output, is no package."""
    (tmp_path / "targets").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import qcompiler, targets.native"
    assert python(code).returncode == 0


# --- what may load what ------------------------------------------------------------------------


def imports(file: Path) -> set[str]:
    """Return the modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_runtime_imports_what_the_base_installation_has_and_no_more() -> None:
    allowed = {*sys.stdlib_module_names}
    allowed |= {"numpy", "safetensors", "tokenizers", "jinja2", "tvm_ffi"}
    for file in sorted((ROOT / "qcompiler" / "runtime").glob("*.py")):
        for module in imports(file):
            ours = module.startswith(
                ("qcompiler.runtime", "qcompiler.core.artifact", "qcompiler.core.errors")
            )
            assert ours or module.partition(".")[0] in allowed, f"{file.name} imports {module}"


def test_only_codegen_imports_tvm() -> None:
    for package in ("qcompiler", "passes", "targets"):
        for file in (ROOT / package).rglob("*.py"):
            assert not any(m.partition(".")[0] == "tvm" for m in imports(file)), file


def test_no_test_folder_is_a_package() -> None:
    """`tests/passes/__init__.py` would hide `passes`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


# --- the distribution --------------------------------------------------------------------------


def test_requirements_are_bounded() -> None:
    """A release of somebody else's must not break an installation of ours."""
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *extras["compiler"], *extras["test"]]:
        assert re.search(r"<\d|==\d", requirement), requirement


def test_the_base_installation_has_no_compiler() -> None:
    base = " ".join(PROJECT["project"]["dependencies"])
    for name in ("torch", "transformers", "gguf", "scipy", "networkx", "sympy"):
        assert name not in base
    assert not re.search(r"apache-tvm(?!-ffi)", base)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("qcompiler-*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_all_packages_and_their_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    source = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix in {".py", ".toml", ".html", ".cc", ".h", ".hpp", ".md", ".txt"}
    }
    assert source <= names
    assert {f"passes/presets/{name}.toml" for name in preset_names()} <= names
    assert not [n for n in names if n.endswith((".so", ".safetensors", ".gguf", ".pyc"))]
    assert {name.partition("/")[0] for name in names} - {*PACKAGES} == {
        f"qcompiler-{qcompiler.__version__}.dist-info"
    }


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    info = f"qcompiler-{qcompiler.__version__}.dist-info"
    points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "qcompiler = qcompiler.cli:entry" in points
    assert f"Version: {qcompiler.__version__}" in wheel.read(f"{info}/METADATA").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


# --- presets -----------------------------------------------------------------------------------


def test_presets_are_files_named_after_what_they_are() -> None:
    assert preset_names() == [
        "balanced",
        "float",
        "qat-w4a8kv4",
        "w4a8",
        "w4a8-gptq",
        "w4a8-signround",
        "w8a8",
    ]
    assert {file.suffix for file in FOLDER.iterdir()} == {".toml"}


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_made_of_passes_there_are(name: str) -> None:
    from passes import PASSES

    config = find_pipeline(name, passes={step.name for step in PASSES})
    assert config.summary
    assert config.target is None
    assert config.steps[0].name == "canonicalize"
    assert config.steps[-1].name == "legalize"


@pytest.mark.parametrize("name", ["w4a8", "w8a8"])
def test_presets_name_schemes_of_their_kind(name: str) -> None:
    (rules,) = [
        step.options["rules"] for step in find_pipeline(name).steps if step.name == "set-bits"
    ]
    assert rules[0].get("pattern", "*") == "*"
    assert rules[0]["scheme"].startswith(name)
    for rule in rules:
        QuantScheme.parse(rule["scheme"])


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_run(name: str) -> None:
    """Order, options and facts fit, as they are checked when a pipeline is put together."""
    from passes import PASSES
    from qcompiler.core.pipeline import Pipeline, build_pass, pass_table
    from qcompiler.core.stage import Stage

    table = pass_table(PASSES)
    steps = tuple(build_pass(s.name, s.options, table) for s in find_pipeline(name).steps)
    assert Pipeline(steps).yields is Stage.LEGAL
