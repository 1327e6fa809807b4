"""The command line, and `info` on machines with and without CuPy, a driver and a GPU."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest

import gspn2_cupy
from gspn2_cupy.__main__ import COMMANDS, main

ALWAYS = {"gspn2_cupy", "python", "platform", "numpy", "cuda_sources", "kernel_cache"}
MAYBE = {"ml_dtypes", "cupy", "cuda_driver", "cuda_runtime", "nvrtc", "devices"}


def info(capsys) -> dict:
    assert main(["info", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    facts = json.loads(printed)
    assert set(facts) == ALWAYS | MAYBE | {"missing"}
    for name in MAYBE:
        assert bool(facts[name]) == (name not in facts["missing"]), name
    assert facts["gspn2_cupy"] == gspn2_cupy.__version__
    assert facts["numpy"] == numpy.__version__
    assert (Path(facts["cuda_sources"]) / "primitives.cuh").is_file()
    return facts


def cupy_with(monkeypatch, **runtime) -> None:
    """Put a CuPy in place whose CUDA runtime answers as given."""
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(runtimeGetVersion=lambda: 13020, **runtime),
        nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 5)),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def fails(message: str):
    def call(*_):
        raise RuntimeError(message)

    return call


def test_it_says_where_calls_run(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["info"]) == 0
    without = capsys.readouterr().out
    assert "\nCUDA arrays   cannot run here\n" in without
    assert "\nCPU arrays    run here, by the NumPy reference\n" in without
    properties = {"name": b"Made-up", "major": 9, "minor": 0, "totalGlobalMem": 2**34}
    cupy_with(
        monkeypatch,
        driverGetVersion=lambda: 13000,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda _: properties,
    )
    assert main(["info"]) == 0
    assert "\nCUDA arrays   run here, by CUDA kernels\n" in capsys.readouterr().out


def test_without_cupy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # import cupy raises ModuleNotFoundError
    facts = info(capsys)
    assert facts["cupy"] is None
    assert facts["devices"] == []
    assert facts["missing"]["cupy"] == "not installed; the extras cuda12 and cuda13 bring it"
    assert facts["missing"]["cuda_driver"] == "not known without CuPy"


def test_a_broken_cupy_says_why(capsys, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.13:\\n  cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert info(capsys)["missing"]["cupy"] == "libnvrtc.so.13: cannot open"


def test_without_a_driver(capsys, monkeypatch):
    cupy_with(monkeypatch, driverGetVersion=lambda: 0, getDeviceCount=fails("cudaErrorInsufficientDriver"))
    facts = info(capsys)
    assert (facts["cupy"], facts["cuda_runtime"], facts["nvrtc"]) == ("14.2.0", "13.2", "13.5")
    assert facts["missing"]["cuda_driver"] == "no NVIDIA driver found"
    assert facts["missing"]["devices"] == "cudaErrorInsufficientDriver"


def test_without_a_device(capsys, monkeypatch):
    cupy_with(monkeypatch, driverGetVersion=lambda: 13000, getDeviceCount=lambda: 0)
    facts = info(capsys)
    assert facts["cuda_driver"] == "13.0"
    assert facts["missing"]["devices"] == "no CUDA device is visible"


def test_with_two_devices(capsys, monkeypatch):
    properties = {"name": b"NVIDIA H100", "major": 9, "minor": 0, "totalGlobalMem": 80 * 2**30}
    cupy_with(
        monkeypatch,
        driverGetVersion=lambda: 13000,
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda index: properties,
    )
    devices = info(capsys)["devices"]
    assert [device["index"] for device in devices] == [0, 1]
    assert devices[1]["compute_capability"] == "9.0"
    assert main(["info"]) == 0
    assert "device 1      NVIDIA H100, compute capability 9.0, 80.0 GiB\n" in capsys.readouterr().out


def test_for_a_person(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] in "gN")
    assert lines["gspn2_cupy"] == gspn2_cupy.__version__
    assert lines["NVRTC"] == "none: not known without CuPy"


def test_the_kernel_cache_is_where_cupy_puts_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    assert info(capsys)["kernel_cache"] == str(tmp_path)


def test_the_installed_cupy(capsys):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    facts = info(capsys)
    assert facts["cupy"] == cupy.__version__
    assert facts["cuda_runtime"]


@pytest.mark.gpu
def test_the_real_device(capsys):
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    device = info(capsys)["devices"][0]
    assert device["compute_capability"].replace(".", "") == cupy.cuda.Device(0).compute_capability


def test_help_is_what_comes_without_a_command(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert name in printed
        assert summary.split()[0] in printed


def test_unknown_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nonsense"])
    assert "invalid choice" in capsys.readouterr().err


def test_as_a_module_from_any_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(gspn2_cupy.__file__).parents[1])}
    command = [sys.executable, "-m", "gspn2_cupy", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, gspn2_cupy.__version__)
