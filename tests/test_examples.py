"""Each example, in its short version, run as its page says: it ends in a picture and in figures that hold."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
TRAINED = ("classify_digits", "long_range")
EXAMPLES = ("affinity_map", "large_image", *TRAINED)

for name in ("matplotlib", "rich", "skimage", "sklearn"):
    pytest.importorskip(name, reason="needs the extra examples")


@pytest.fixture
def run(tmp_path):
    """Run an example's short version; return what it printed, once it has written a picture that isn't blank."""

    def run(name, *arguments):
        if name in TRAINED:
            pytest.importorskip("torch", reason="torch is not installed")
            arguments += ("--threads", "1")  # the tests themselves run on all cores
        picture = tmp_path / f"{name}.png"
        command = [sys.executable, ROOT / "examples" / f"{name}.py", "--quick", "--output", picture, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, done.stderr
        from PIL import Image

        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 10
        assert str(picture) in done.stdout.splitlines()[-1]
        return done.stdout

    return run


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_classify_digits(run):
    assert number(r"digits read rightly: ([\d.]+)%", run("classify_digits")) > 90  # 98.6 when written; by chance 10


def test_long_range(run):
    printed = run("long_range")
    right, whole = {}, {}
    for network in ("GSPN-2", "convolution", "attention"):
        right[network], whole[network] = (
            number(rf"{network}\s+\d+\s+\d+ s\s+{skipped}([\d.]+)%", printed) for skipped in ("", r"[\d.]+%\s+")
        )
    assert right["GSPN-2"] > 90  # 96.8 when written; calling every pixel wet would be right at 53.6
    assert whole["GSPN-2"] > whole["convolution"] + 10  # 81.2 and 53.1 when written
    # 70.3 when written. It led by 6 to 37 with five seeds, too near for a margin on other machines.
    assert whole["GSPN-2"] > whole["attention"]


def test_affinity_map(run):
    printed = run("affinity_map")
    assert number(r"relative error (\S+)", printed) < 5e-6
    assert number(r"rows +sum to 1 within (\S+)", printed) < 1e-5
    one, two, blind, *stochastic = map(float, re.search(r"all pixels((?: +[\d.]+){5})", printed)[1].split())
    # Two units are nearer to attention's map than the best that knows the distance alone. One is, too, on this small
    # photograph (0.497 and 0.457 when written), but not on the page's, so that is no property to test.
    assert two > blind
    assert two > one
    assert max(stochastic) < one  # as the page says of weights that sum to 1


def test_large_image(run):
    printed = run("large_image")
    assert "four directions: bitwise equal to the whole" in printed
    assert number(r"bands +(\d+) of", printed) > 1
    assert number(r"memory +([\d.]+) MiB of arrays", printed) <= number(r"of a budget of (\d+) MiB", printed)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("affinity_map", ["--side", "200"], "--side must be 8 to 96, got 200: one matrix of it takes 6.0 GiB"),
        ("affinity_map", ["--side", "0"], "--side must be 8 to 96, got 0"),
        ("large_image", ["--size", "0"], "--size must be at least 1, got 0"),
        *(
            (name, ["--steps", "10"], "--steps must be at least 20, got 10: the learning rate rises and falls in them")
            for name in TRAINED
        ),
        *((name, ["--output", "missing/it.png"], "--output: there is no folder missing") for name in EXAMPLES),
    ],
)
def test_an_example_refuses_before_it_works(tmp_path, name, arguments, message):
    if name in TRAINED:
        pytest.importorskip("torch", reason="torch is not installed")
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"{name}.py: error: {message}\n")


def test_large_image_says_when_a_line_does_not_fit(tmp_path):
    command = [sys.executable, ROOT / "examples" / "large_image.py", "--size", "100000", "--memory", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "one line of 100000 pixels needs more than 2 MiB; raise --memory\n"


def test_every_example_is_tested_and_explained():
    scripts = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"network"}
    assert scripts == set(EXAMPLES)
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    for name in EXAMPLES:
        assert f"python examples/{name}.py" in page
        assert f"(examples/{name}.png)" in page


def test_pictures_of_the_pages_can_be_drawn(tmp_path):
    code = "import runpy, sys; f = runpy.run_path(sys.argv[1]); f['line_scan']().savefig('picture.png')"
    command = [sys.executable, "-c", code, ROOT / "docs" / "pictures.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").stat().st_size > 10_000
