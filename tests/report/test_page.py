"""The page holds every section there is, and loads nothing from anywhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qcompiler import cli
from qcompiler.core.artifact import Manifest, write_artifact
from qcompiler.report.content import encode, parse
from qcompiler.report.page import render

ROOT = Path(__file__).parents[2]
SECTIONS = {
    *("bits", "allocation", "sensitivity", "errors", "costs", "pipeline", "times"),
    *("calibration", "kernels", "notes", "rest"),
}
LOADS = ("src", "srcset", "data", "poster", "background", "action", "xlink:href")
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Reads a page: its sections, what it would load, its text, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: set[str] = set()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name in LOADS or (name == "href" and tag != "a"):
                self.loads.append(str(value))
            if name == "href" and tag == "a":
                self.links.append(str(value))
            if name == "id":
                self.ids.add(str(value))
                if tag == "section":
                    self.sections.add(str(value))
            assert not name.startswith("on")
            if name == "style":
                assert "url" not in str(value)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.words.append(text)
        if self._open and self._open[-1] == "style":
            assert not re.search(r"url\(|@import|https?:", text)

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def test_every_section_is_there(
    manifest: Manifest, content: dict[str, Any], times: dict[str, Any]
) -> None:
    page = Page(render(manifest, parse(content, times)))
    assert page.sections == SECTIONS
    assert {link.removeprefix("#") for link in page.links} <= page.ids
    for words in (
        "tiny & small",
        "3 min 10 s",
        "10.0%",
        "w4a8g32",
        "uniform w4a8g64",
        "gemm_decode",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 4  # front, errors by block, blocks, curves


def test_training_shows_how_the_loss_fell(manifest: Manifest, content: dict[str, Any]) -> None:
    content["records"]["train-fake-quant"] = {
        "whole": {
            "loss": "distill",
            "steps": 20,
            "best": 16,
            "before": 0.09,
            "after": 0.06,
            "held_out": [[0, 0.09], [8, 0.07], [16, 0.06], [20, None]],
            "curve": [[1.0, 0.1], [10.0, 0.08], [20.0, 0.07]],
        }
    }
    page = Page(render(manifest, parse(content, {})))
    assert "20 steps: the loss on samples held out went from 0.09 to 0.06" in page.text
    assert "held out" in page.text
    assert page.tags.count("svg") == 5


def test_nothing_is_loaded_or_run(
    manifest: Manifest, content: dict[str, Any], times: dict[str, Any]
) -> None:
    page = Page(render(manifest, parse(content, times)))
    assert page.loads == []
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)


def test_names_are_text(manifest: Manifest, content: dict[str, Any]) -> None:
    evil = "<script>alert('&')</script>"
    text = json.dumps(content).replace("model.layers.1.mlp.up_proj", evil)
    text = text.replace("uniform w4a8g64", evil).replace("some text", evil)
    page = Page(render(manifest, parse(json.loads(text))))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 3
    assert "<b>no markup</b>" in page.text


def test_what_is_not_known_is_left_out(manifest: Manifest) -> None:
    bare = dataclasses.replace(manifest, plan={}, kernels={})
    page = Page(render(bare, parse({})))
    assert page.sections == {"pipeline"}
    assert {link.removeprefix("#") for link in page.links} <= page.ids


@pytest.mark.parametrize("name", ["front", "chosen", "others", "budgets", "prices", "objective"])
def test_an_allocation_may_lack_anything(
    name: str, manifest: Manifest, content: dict[str, Any]
) -> None:
    del content["records"]["allocate-bits"][name]
    assert "allocation" in Page(render(manifest, parse(content))).sections


@pytest.mark.parametrize("given", ["before", "after"])
def test_one_error_alone_is_shown(given: str, manifest: Manifest) -> None:
    operators = {"model.layers.0.up": {given: 0.1}, "model.layers.1.up": {given: None}}
    records = {"quantize-rtn": {"measure": "relative weight error", "operators": operators}}
    page = Page(render(manifest, parse({"records": records})))
    assert "errors" in page.sections
    assert "relative weight error" in page.text


def test_a_grid_has_a_row_for_each_block(manifest: Manifest, content: dict[str, Any]) -> None:
    text = render(manifest, parse(content))
    bits = text[text.index('id="bits"') : text.index('id="allocation"')]
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>', bits)
    assert rows == ["0", "1", "2"]
    assert re.findall(r'<th scope="col">([^<]+)', bits) == [
        *("block", "qkv_proj", "up_proj", "down_proj")
    ]
    assert bits.count('title="model.layers.1.mlp.up_proj: w4a8g32, 64×32, 4.50 bits') == 1


# --- from the command line and in a browser -------------------------------------------------------


@pytest.fixture
def artifact(
    tmp_path: Path, manifest: Manifest, content: dict[str, Any], times: dict[str, Any]
) -> Path:
    folder = tmp_path / "tiny.qc"
    files: dict[str, bytes | Path] = {"report.json": encode(content)}
    bare = dataclasses.replace(manifest, files={})
    write_artifact(folder, bare, files, [], unlisted=lambda _: {"times.json": encode(times)})
    return folder


def test_inspect_writes_the_page(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.html"
    assert cli.main(["inspect", str(artifact), "--html", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}\n", "")
    assert Page(file.read_text(encoding="utf-8")).sections == SECTIONS
    assert cli.main(["inspect", str(artifact), "--html", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny & small"


def test_the_page_needs_no_compiler(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    code = f"""
import sys
for name in ("gguf", "networkx", "scipy", "sympy", "torch", "transformers", "tvm"):
    sys.modules[name] = None
from qcompiler import cli
sys.exit(cli.main(["inspect", {str(artifact)!r}, "--html", {str(file)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert Page(file.read_text(encoding="utf-8")).sections == SECTIONS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/out.html", "cannot write it: No such file or directory"),
        ("tiny.qc/manifest.json", "this is no page; name a file that ends in .html"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line(
    name: str, message: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (artifact / "manifest.json").read_bytes()
    assert cli.main(["inspect", str(artifact), "--html", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
    assert (artifact / "manifest.json").read_bytes() == before


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_within_its_window(
    width: int, tmp_path: Path, manifest: Manifest, content: dict[str, Any], times: dict[str, Any]
) -> None:
    """The page itself reports, by a script added for the purpose, how wide it has become."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: {' or '.join(BROWSERS)}")
    script = (
        "<script>document.title = JSON.stringify({wide: document.documentElement.scrollWidth, "
        "window: innerWidth, loaded: performance.getEntriesByType('resource').length, "
        "hidden: [...document.querySelectorAll('svg text')].filter(t => !t.getBBox().width).length"
        "})</script></body>"
    )
    frame = tmp_path / "page.html"
    # Windows of a browser without a screen are no narrower than 500; a frame inside one is.
    page = render(manifest, parse(content, times)).replace("</body>", script)
    frame.write_text(page, encoding="utf-8")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe src="page.html" width="{width}" height="900" style="border:0"></iframe>'
        "<script>onload = () => { document.body.append('found' + "
        "document.querySelector('iframe').contentDocument.title + 'end') }</script>"
    )
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files"),
        *("--dump-dom", outer.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r"found(\{.*?\})end</body>", done.stdout, re.S)
    assert match, done.stdout[-500:]
    assert json.loads(match[1]) == {"wide": width, "window": width, "loaded": 0, "hidden": 0}
