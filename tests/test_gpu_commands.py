"""The commands on a GPU: they find it, use it and say so."""

import json
import re
import subprocess
import sys

import pytest
from gpu_support import needs_gpu

pytestmark = needs_gpu


def command(*arguments, folder):
    done = subprocess.run(
        [sys.executable, "-m", "gspn2_cupy", *arguments], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, from which the package under test is found."""
    from pathlib import Path

    import gspn2_cupy

    monkeypatch.setenv("PYTHONPATH", str(Path(gspn2_cupy.__file__).parents[1]))
    return tmp_path


def test_info(folder):
    import cupy

    facts = json.loads(command("info", "--json", folder=folder))
    assert facts["cuda_driver"]
    assert len(facts["devices"]) == cupy.cuda.runtime.getDeviceCount()
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert facts["devices"][0]["name"] == properties["name"].decode()
    assert facts["devices"][0]["memory_bytes"] == properties["totalGlobalMem"]
    assert f"device 0      {facts['devices'][0]['name']}" in command("info", folder=folder)


def test_demo(folder):
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    report = json.loads(command("demo", "--json", folder=folder))
    assert report["backend"] == "cupy"
    assert report["psnr"] > report["psnr_nearest"]
    assert (folder / "demo.png").stat().st_size > 0
    assert "backend  CUDA kernels through CuPy" in command("demo", folder=folder)


def test_check(folder):
    printed = command("check", "--seconds", "40", folder=folder)
    assert "FAILED" not in printed
    assert re.search(r"\n[1-9]\d* kernels, [1-9]\d*( of \d+)? cases, \d+ s: (all|all of these) ok\n$", printed)
