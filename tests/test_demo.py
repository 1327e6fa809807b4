"""The demo: propagation beats the plain fill on real photographs, and wrong use gets one clear line."""

import errno
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import gspn2_cupy
from gspn2_cupy import _demo
from gspn2_cupy.__main__ import main

pytest.importorskip("skimage", reason="needs the extra demo")
Image = pytest.importorskip("PIL.Image", reason="needs the extra demo")

PROG = "python -m gspn2_cupy demo: "


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Give an empty current folder: relative paths keep the messages short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(pixels, name) -> str:
    Image.fromarray(pixels).save(name)
    return name


def colours(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def demo(capsys, *arguments) -> dict:
    assert main(["demo", "--json", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    report = json.loads(printed)
    assert set(report) == {"backend", "shape", "seconds", "psnr", "psnr_nearest"}
    return report


def complaint(capsys, *arguments) -> str:
    """Run a command that must fail, and return its one line."""
    assert main(["demo", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(PROG)
    assert printed.err.endswith("\n")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix(PROG).rstrip("\n")


# --- what it is for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("photograph", ["astronaut", "coffee", "rocket"])
def test_beats_the_plain_fill(photograph, seed, capsys, folder):
    import skimage.data

    image = [] if photograph == "astronaut" else [save(getattr(skimage.data, photograph)(), "photograph.png")]
    report = demo(capsys, *image, "--seed", str(seed))
    assert report["psnr"] >= report["psnr_nearest"] + 2
    assert report["psnr_nearest"] > 25  # the plain fill is no straw man
    assert report["seconds"] > 0


def test_default_run_explains_itself_and_writes_the_picture(capsys, folder):
    assert main(["demo", "--output", "colours.png"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "astronaut",
        "512 x 512 pixels",
        "colour kept at 5243 of 262144",
        "backend",
        "x (1, 3, 512, 512), weight (1, 4, 1, 3, 512, 512), float32",
        "dB propagated",
        "dB plain fill",
        "'colours.png'",
    ):
        assert part in printed
    assert [path.name for path in folder.iterdir()] == ["colours.png"]
    with Image.open("colours.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (3 * 512 + 4 * 20, 512 + 2 * 20 + 62))
        original = np.asarray(picture)[-20 - 512 : -20, -20 - 512 : -20]
    import skimage.data

    np.testing.assert_array_equal(original, skimage.data.astronaut())


def test_same_seed_same_picture(capsys, folder):
    image = save(colours(20, 30), "image.png")
    reports = [demo(capsys, image, "--seed", seed, "--output", f"{i}.png") for i, seed in enumerate("778")]
    assert reports[0]["psnr"] == reports[1]["psnr"] != reports[2]["psnr"]
    assert Path("0.png").read_bytes() == Path("1.png").read_bytes() != Path("2.png").read_bytes()


def test_hints_keep_their_colour_and_an_edge_stops_it():
    image = np.zeros((9, 20, 3), np.uint8)
    image[:, :10], image[:, 10:] = (200, 40, 40), (40, 40, 100)  # red, and a darker blue
    grey, chroma = _demo._split(image)
    hints = np.zeros(grey.shape, bool)
    hints[4, 0] = hints[4, 12] = True  # the nearest hint of red's last columns is blue
    nearest = _demo._nearest_chroma(chroma, hints)
    result = _demo._join(grey, _demo.colorize(np, grey, chroma, hints, nearest))
    np.testing.assert_array_equal(result[hints], image[hints])
    assert _demo._psnr(result, image) > _demo._psnr(_demo._join(grey, nearest), image) + 6


def test_weights_are_stable_and_fall_across_edges():
    grey = np.zeros((6, 8), np.float32)
    grey[:, 4:] = 1
    weight = _demo.edge_weights(np, grey)
    assert weight.shape == (1, 4, 1, 3, 6, 8)
    assert weight.dtype == np.float32
    assert (weight >= 0).all()
    assert (weight.sum(axis=3) < 1).all()
    assert (weight[0, 0, 0, :, :, 4] < weight[0, 0, 0, :, :, 1] / 2).all()


# --- every kind of image ----------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 12 * 16).reshape(12, 16)


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        pytest.param((RAMP * 255).astype(np.uint8), "grey.png", id="8-bit grey"),
        pytest.param((RAMP * 65535).astype(np.uint16), "deep.png", id="16-bit grey"),
        pytest.param(RAMP.astype(np.float32), "float.tif", id="float grey"),
    ],
)
def test_grey_images(pixels, name, folder):
    read = _demo._photograph(save(pixels, name))
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read, np.repeat(RAMP[..., None] * 255, 3, axis=-1), atol=1)


def test_transparent_pixels_are_white(folder):
    pixels = np.dstack([colours(5, 7), np.zeros((5, 7), np.uint8)])
    pixels[2, 3, 3] = 255
    read = _demo._photograph(save(pixels, "transparent.png"))
    np.testing.assert_array_equal(read[2, 3], pixels[2, 3, :3])
    assert (np.delete(read.reshape(-1, 3), 2 * 7 + 3, axis=0) == 255).all()


@pytest.mark.parametrize(
    ("height", "width", "fraction"),
    [
        (1, 1, "0.02"),  # the smallest image; the fraction rounds to no hint, and one is kept
        (1, 40, "0.1"),  # one row
        (40, 1, "0.1"),  # one column
        (7, 5, "1e-9"),
        (7, 5, "1"),  # nothing left to find
    ],
)
def test_small_images_and_extreme_fractions(height, width, fraction, capsys, folder):
    report = demo(capsys, save(colours(height, width), "image.png"), "--hints", fraction)
    assert report["shape"] == [1, 3, height, width]
    assert (report["psnr"] is None) == (fraction == "1" or height * width == 1)  # equal images: no finite number
    with Image.open("demo.png") as picture:
        picture.load()


def test_large_images_get_smaller_panels(capsys, folder):
    demo(capsys, save(colours(20, 2048), "wide.png"))
    with Image.open("demo.png") as picture:
        assert picture.size == (3 * 1024 + 4 * 20, 10 + 2 * 20 + 62)


# --- where it runs ----------------------------------------------------------------------------------------------


class FakeCupy(types.ModuleType):
    """NumPy under CuPy's name, with what the demo asks a device."""

    def __init__(self):
        super().__init__("cupy")
        self.__version__ = "14.2.0"
        self.asnumpy = np.asarray
        properties = {"name": b"NVIDIA Imaginary"}
        self.cuda = types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=0),
            runtime=types.SimpleNamespace(getDeviceProperties=lambda _: properties),
        )

    def __getattr__(self, name):
        return getattr(np, name)


def test_takes_the_gpu_when_there_is_one(capsys, folder, monkeypatch):
    image = save(colours(9, 12), "image.png")
    monkeypatch.setitem(sys.modules, "cupy", None)
    without = demo(capsys, image)
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    report = demo(capsys, image)
    assert (report["backend"], without["backend"]) == ("cupy", "numpy")
    assert report["psnr"] == without["psnr"]
    assert main(["demo", image]) == 0
    assert "CUDA kernels through CuPy 14.2.0 on NVIDIA Imaginary" in capsys.readouterr().out


def test_takes_the_cpu_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert _demo._array_module() == (np, f"NumPy {np.__version__} on the CPU (CuPy is not installed)")


def test_takes_the_cpu_when_cupy_finds_no_device(monkeypatch):
    def ones(*_):
        raise RuntimeError("cudaErrorNoDevice:\nno CUDA-capable device is detected")

    cupy = FakeCupy()
    cupy.ones = ones
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    xp, line = _demo._array_module()
    assert xp is np
    assert line.endswith("(CuPy cannot run here: cudaErrorNoDevice: no CUDA-capable device is detected)")


# --- wrong use --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", ["0", "-0.1", "1.01", "nan", "inf", "two"])
def test_hints_outside_their_range(fraction, capsys, folder):
    expected = f"--hints must be a fraction above 0 and at most 1; got {fraction}"
    assert complaint(capsys, f"--hints={fraction}") == expected
    assert list(folder.iterdir()) == []


def test_negative_seed(capsys, folder):
    assert complaint(capsys, "--seed=-1") == "--seed must be 0 or more; got -1"


def test_missing_image(capsys, folder):
    assert complaint(capsys, "nowhere.png") == "image 'nowhere.png' does not exist"
    assert list(folder.iterdir()) == []


def test_broken_images(capsys, folder):
    whole = Path(save(colours(30, 30), "whole.png")).read_bytes()
    Path("broken.png").write_bytes(whole[: len(whole) // 2])
    Path("text.png").write_text("no image")
    Path("empty.png").touch()
    for name in ("broken.png", "text.png", "empty.png", "."):
        assert complaint(capsys, name).startswith(f"image {name!r} cannot be read: ")
    assert not Path("demo.png").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("nowhere/demo.png", "No such file or directory"),
        ("a_file/demo.png", "Not a directory"),
        (".", "Is a directory"),
        pytest.param(
            "/dev/full",
            "No space left on device",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full"),
        ),
    ],
)
def test_output_that_cannot_be_written(output, reason, capsys, folder, monkeypatch):
    image = save(colours(4, 4), "image.png")
    Path("a_file").touch()
    if output != "/dev/full":  # only this one shows when writing
        monkeypatch.setattr(_demo, "colorize", lambda *_: pytest.fail("worked before checking the output"))
    assert complaint(capsys, image, "--output", output) == f"output {str(Path(output))!r} cannot be written: {reason}"
    assert {path.name for path in folder.iterdir()} == {"a_file", "image.png"}


def test_output_that_fails_half_way_is_removed(capsys, folder, monkeypatch):
    def write_bytes(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    image = save(colours(4, 4), "image.png")
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert complaint(capsys, image) == "output 'demo.png' cannot be written: No space left on device"
    assert [path.name for path in folder.iterdir()] == ["image.png"]


def test_the_image_itself_is_never_overwritten(capsys, folder):
    image = save(colours(4, 4), "demo.png")
    before = Path(image).read_bytes()
    assert complaint(capsys, image) == "output 'demo.png' must be another file than the image"
    assert Path(image).read_bytes() == before


def test_an_earlier_picture_survives_an_error(capsys, folder, monkeypatch):
    Path("demo.png").write_text("earlier")
    image = save(colours(4, 4), "image.png")

    def colorize(*_):
        raise MemoryError

    monkeypatch.setattr(_demo, "colorize", colorize)
    assert complaint(capsys, image) == "an image of 4 x 4 pixels needs more memory than there is"
    assert Path("demo.png").read_text() == "earlier"


@pytest.mark.parametrize("package", ["skimage", "PIL"])
def test_missing_extra(package, capsys, folder, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    line = complaint(capsys)
    assert line.startswith("the demo needs scikit-image and Pillow (")
    assert line.endswith('; install them with: pip install "gspn2_cupy[demo]"')
    assert list(folder.iterdir()) == []


def test_from_the_command_line(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(gspn2_cupy.__file__).parents[1])}
    command = [sys.executable, "-m", "gspn2_cupy", "demo", save(colours(8, 8), "image.png")]
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout)["shape"] == [1, 3, 8, 8]
    assert Path("demo.png").exists()
    done = subprocess.run([*command, "--output", "nowhere/demo.png"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{PROG}output 'nowhere/demo.png' cannot be written: No such file or directory\n"
