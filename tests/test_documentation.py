"""What the documentation shows runs: every ```python block, every example of a docstring, every link.

A page says what a block needs in a comment right before it: `<!-- requires: torch -->` names modules, `gpu` for a
CUDA device, and `g++` for the emulator.
"""

import doctest
import importlib
import json
import re
from pathlib import Path

import emulator
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- requires: (?P<what>[^\n]+) -->\n+)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            marks = [pytest.mark.gpu] if "gpu" in (match["what"] or "") else []
            yield pytest.param(page, line, match, id=f"{page.name}:{line + 1}", marks=marks)


@pytest.mark.parametrize(("page", "line", "match"), list(blocks()))
def test_block(page, line, match, tmp_path, monkeypatch):
    for requirement in re.split(r",\s*", match["what"] or "numpy"):
        if requirement == "gpu":
            cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
            if not cupy.cuda.is_available():
                pytest.skip("no CUDA device")
        elif requirement == "g++":
            emulator.require()
        else:
            pytest.importorskip(requirement, reason=f"{requirement} is not installed")
    monkeypatch.chdir(tmp_path)
    # The blank lines in front make a traceback name the page's own line.
    exec(compile("\n" * line + match["code"], page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("module", "requirement"),
    [
        ("gspn2_cupy.ops", "numpy"),
        ("gspn2_cupy.compact", "numpy"),
        ("gspn2_cupy.torch", "torch"),
        ("gspn2_cupy.jax", "jax"),
    ],
)
def test_examples_of_docstrings(module, requirement):
    pytest.importorskip(requirement, reason=f"{requirement} is not installed")
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_environment_variables_are_explained_in_one_place():
    read = re.compile(r"environ(?:\.get\(|\[)\"(GSPN2_\w+)\"")
    variables = {
        name
        for folder in ("gspn2_cupy", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for name in read.findall(path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(GSPN2_\w+)`", page, re.M)) == variables


def test_readme_has_exactly_two_set_up_commands():
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    demo, tests = commands
    assert demo.endswith("-m gspn2_cupy demo")
    assert "-m pytest" in tests


def test_readme_has_the_table_of_the_results_file(tmp_path, capsys):
    from benchmarks import __main__ as command
    from benchmarks.report import BEGIN, END

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(text, encoding="utf-8")
    name = re.search(rf"{re.escape(BEGIN)}\s+\*\*(.+?)\*\*", text)[1].lower().replace(" ", "_")
    results = ROOT / "benchmarks/results" / f"{name}.json"
    assert command.main(["table", str(results), "--brief", "--write", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == text
    assert END in text


HASH = r"(?P<commit>(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,12})"
CITED = re.compile(rf"results/(?P<file>nvidia_\w+\.json)\).{{0,160}}?\b{HASH}\b", re.S)


def test_pages_cite_the_commit_that_a_results_file_was_measured_at():
    cited = [(page.name, m) for page in PAGES for m in CITED.finditer(page.read_text(encoding="utf-8"))]
    assert {m["file"] for _, m in cited} == {path.name for path in (ROOT / "benchmarks/results").glob("nvidia_*.json")}
    for page, m in cited:
        measured = json.loads((ROOT / "benchmarks/results" / m["file"]).read_text(encoding="utf-8"))["commit"]
        assert measured.startswith(m["commit"]) or m["commit"].startswith(measured), (page, m["file"], m["commit"])
