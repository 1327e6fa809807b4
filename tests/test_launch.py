"""How kernels get to CuPy, seen through a stand-in for it: what is compiled, cached, kept and launched."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from emulator import LIMITS

from gspn2_cupy import _launch
from gspn2_cupy._plan import KernelSpec

SPEC = KernelSpec("merge.cu", "merge", (("SCALAR", "float"), ("THREADS", "256")))


class Function:
    """A CuPy kernel that remembers its launches and how often it was allowed more shared memory."""

    shared_size_bytes = 1000  # static

    def __init__(self):
        self.launches, self.allowed, self.compiled = [], [], False

    def compile(self):
        self.compiled = True

    @property
    def max_dynamic_shared_size_bytes(self):
        return self.allowed[-1] if self.allowed else _launch.STATIC_SHARED_LIMIT

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        self.allowed.append(size)

    def __call__(self, grid, block, arguments, *, shared_mem):
        self.launches.append((grid, block, arguments, shared_mem))


@pytest.fixture
def modules(monkeypatch):
    """The modules that are made: what each was asked for, and its kernel."""
    made = []

    def raw_module(*, code, options, enable_cooperative_groups):
        module = SimpleNamespace(code=code, options=options, cooperative=enable_cooperative_groups, entries=[])
        module.kernel = Function()
        module.get_function = lambda entry: module.entries.append(entry) or module.kernel
        made.append(module)
        return module

    cupy = ModuleType("cupy")
    cupy.RawModule = raw_module
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return made


def launch(kernel, shared_bytes=0, **options):
    kernel((3, 1, 1), (256, 1, 1), shared_bytes, ("array", "struct"), **options)


def test_a_module_is_one_specialisation_loaded_once(modules):
    kernel = _launch.CupyKernel(SPEC, LIMITS)
    assert not modules, "compiled before it was launched"
    for _ in range(3):
        launch(kernel)
    (module,) = modules
    assert module.entries == ["merge"]
    assert module.kernel.compiled
    assert module.kernel.launches == [((3, 1, 1), (256, 1, 1), ("array", "struct"), 0)] * 3
    assert not module.cooperative


def test_a_cooperative_launch_has_a_module_of_its_own(modules):
    kernel = _launch.CupyKernel(SPEC, LIMITS)
    for cooperative in (False, True, True, False):
        launch(kernel, cooperative=cooperative)
    assert [(module.cooperative, len(module.kernel.launches)) for module in modules] == [(False, 2), (True, 2)]


def test_compiler_errors_point_to_the_file_and_each_specialisation_has_its_own_cache_entry():
    text, options = _launch.compiler_input(SPEC)
    path = _launch.cuda_sources() / "merge.cu"
    first, _, rest = text.partition("\n")
    assert first == f'#line 1 "{path.as_posix()}"'
    assert rest == path.read_text(encoding="utf-8")
    assert {"-DSCALAR=float", "-DTHREADS=256", "-std=c++17", f"-I{path.parent}"} <= set(options)
    other = KernelSpec(SPEC.source, SPEC.entry, (("SCALAR", "double"), ("THREADS", "256")))
    assert _launch.compiler_input(other)[1] != options


def test_an_edit_anywhere_in_the_sources_makes_a_new_cache_entry(monkeypatch, tmp_path):
    # CuPy's disk cache sees the text and the options, not the headers that the text includes.
    for name in ("merge.cu", "geometry.cuh"):
        (tmp_path / name).write_text("// one\n")
    monkeypatch.setattr(_launch, "cuda_sources", lambda: tmp_path)
    monkeypatch.setattr(_launch, "sources_hash", _launch.sources_hash.__wrapped__)  # which is asked once per process
    options = [_launch.compiler_input(SPEC)[1] for _ in range(2)]
    (tmp_path / "geometry.cuh").write_text("// two\n")
    options.append(_launch.compiler_input(SPEC)[1])
    (tmp_path / "geometry.cuh").rename(tmp_path / "state.cuh")
    options.append(_launch.compiler_input(SPEC)[1])
    assert options[0] == options[1]
    assert len(set(options)) == 3


def test_more_shared_memory_is_allowed_once(modules):
    kernel = _launch.CupyKernel(SPEC, LIMITS)
    launch(kernel, _launch.STATIC_SHARED_LIMIT)
    (module,) = modules
    assert module.kernel.allowed == []  # every kernel may have so much
    for size in (100_000, 60_000, 200_000):
        launch(kernel, size)
    assert module.kernel.allowed == [LIMITS.shared_bytes_per_block - Function.shared_size_bytes]
    assert [shared for *_, shared in module.kernel.launches] == [_launch.STATIC_SHARED_LIMIT, 100_000, 60_000, 200_000]
