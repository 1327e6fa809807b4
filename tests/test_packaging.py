"""What is inside wheel and sdist, and that each way of installing finds the CUDA sources."""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore")
PACKAGED += ("benchmarks", "cuda", "docs", "examples", "gspn2_cupy", "tests", "tools")

pytest.importorskip("hatchling", reason="hatchling is not installed; the extra `test` brings it")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources, with the junk of a used checkout, none of which may be packaged."""
    copy = tmp_path_factory.mktemp("checkout")
    junk = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", ".benchmarks", "*.so")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=junk)
        elif (ROOT / name).exists():  # an sdist has no .gitignore of ours to miss
            shutil.copy(ROOT / name, copy)
    for folder in ("gspn2_cupy", "tests"):
        (copy / folder / "__pycache__").mkdir()
        (copy / folder / "__pycache__" / "junk.cpython-311.pyc").touch()
    (copy / "tests" / "kernels.so").touch()
    return copy


def build(hook: str, source: Path, output: Path) -> Path:
    code = f"import hatchling.build as backend; print(backend.{hook}({str(output)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return build("build_wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    return build("build_sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel_from_sdist(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("build_wheel", next(folder.iterdir()), tmp_path_factory.mktemp("wheel_from_sdist"))


def sources_under(folder: Path, pattern: str = "*") -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    cuda = {f"gspn2_cupy/_cuda/{name}" for name in sources_under(ROOT / "cuda")}
    python = {f"gspn2_cupy/{name}" for name in sources_under(ROOT / "gspn2_cupy", "*.py")}
    assert names == cuda | python | {"gspn2_cupy/py.typed"}
    assert {Path(name).suffix for name in cuda} == {".cu", ".cuh"}


def test_wheel_metadata(wheel):
    files = contents(wheel)
    metadata = next(text.decode() for name, text in files.items() if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0\n" in metadata
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: numpy>=2.1.2"]
    for extra in ("cuda12", "cuda13", "demo", "examples", "test", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata
    for name in ("torch", "jax", "cupy"):  # the tests run without them
        assert not [line for line in required if name in line.split(";")[0] and "extra == 'test'" in line]


def test_sdist_holds_all_sources_and_no_junk(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("benchmarks", "cuda", "examples", "gspn2_cupy", "tests", "tools"):
        for name in sources_under(ROOT / folder):
            path = Path(folder, name)
            if "__pycache__" not in path.parts and path.suffix in {".cu", ".cuh", ".hpp", ".cpp", ".py"}:
                assert path.as_posix() in names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so"))]


def test_wheel_from_the_sdist_is_the_wheel_from_the_checkout(wheel, wheel_from_sdist):
    assert contents(wheel) == contents(wheel_from_sdist)


def test_py_typed_is_empty_and_there():
    assert (ROOT / "gspn2_cupy" / "py.typed").read_bytes() == b""


def installed_sources(site: Path, cwd: Path) -> Path:
    """Where an installation in a folder finds the CUDA sources, in a fresh interpreter that sees it first."""
    code = """if True:
        import site, sys
        before = sys.path[:]
        site.addsitedir(sys.argv[1])
        sys.path.sort(key=before.__contains__)  # what it added comes first
        from gspn2_cupy import _launch
        print(_launch.__file__, _launch.cuda_sources(), sep="\\n")
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(site)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    module, sources = map(Path, done.stdout.splitlines())
    assert ROOT not in module.parents, "the installation under test was not the one imported"
    assert (sources / "primitives.cuh").is_file()
    return sources


@pytest.mark.parametrize("origin", ["wheel", "wheel_from_sdist"])
def test_an_installed_wheel_finds_its_sources(origin, request, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(request.getfixturevalue(origin)) as archive:
        archive.extractall(site)  # all that installing a pure wheel does to its modules
    (site / "cuda" / "pathfinder").mkdir(parents=True)  # NVIDIA's namespace beside the package: not ours
    (site / "cuda" / "pathfinder" / "__init__.py").touch()
    assert installed_sources(site, tmp_path) == site / "gspn2_cupy" / "_cuda"


def test_an_editable_install_finds_the_checkout(checkout, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(build("build_editable", checkout, tmp_path)) as archive:
        archive.extractall(site)
    assert installed_sources(site, tmp_path) == checkout / "cuda"


def test_a_folder_merely_named_cuda_is_not_trusted(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shutil.rmtree(site / "gspn2_cupy" / "_cuda")
    (site / "cuda").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[1])\nfrom gspn2_cupy import _launch\n_launch.cuda_sources()"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(site)], cwd=tmp_path, capture_output=True, text=True)
    assert "FileNotFoundError" in done.stderr, done.stdout + done.stderr


def test_the_version_has_one_source(wheel):
    version = importlib.import_module("gspn2_cupy").__version__
    assert wheel.name.startswith(f"gspn2_cupy-{version}-py3-none-any")
