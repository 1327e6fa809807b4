"""Importing the package is light: NumPy and nothing else, no GPU, from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

import gspn2_cupy

ROOT = Path(__file__).resolve().parents[1]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavier_than_numpy():
    code = """if True:
        import sys
        before = set(sys.modules)
        import gspn2_cupy
        print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
    """
    third_party = set(python(code).split())
    assert {"gspn2_cupy", "numpy"} <= third_party
    assert third_party <= {"gspn2_cupy", "numpy", "ml_dtypes"}  # ml_dtypes is NumPy's bfloat16


def test_numpy_calls_never_import_cupy():
    code = """if True:
        import sys, numpy, gspn2_cupy
        gspn2_cupy.propagate(numpy.ones((1, 1, 2, 2)), numpy.zeros((1, 4, 1, 3, 2, 2)), normalize="softmax")
        print("cupy" in sys.modules)
    """
    assert python(code).split() == ["False"]


def test_public_names():
    for name in gspn2_cupy.__all__:
        assert hasattr(gspn2_cupy, name), name
    assert sorted(gspn2_cupy.__all__) == gspn2_cupy.__all__


def test_no_python_file_under_cuda():
    # One would make the folder shadow the namespace `cuda` of NVIDIA's packages, and break `import cupy` from here.
    assert not list((ROOT / "cuda").rglob("*.py"))


def test_cupy_imports_beside_our_folder_cuda():
    pytest.importorskip("cupy", reason="CuPy is not installed")
    assert python("import gspn2_cupy, cupy, cuda.pathfinder; print(cupy.__name__)").split() == ["cupy"]
