"""Kernels as NVRTC compiles them for every GPU, without one: registers, spills, shared memory, time.

`python -m tools.compile_table` compiles what calls of many shapes choose and prints the table. Here some are, by the
same rules: those that are shortest of registers, and others from all over a shorter list.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gspn2_cupy import _launch
from gspn2_cupy._plan import KernelSpec
from tools import compile_table, nvrtc
from tools.compile_table import Row, failures
from tools.specialisations import GPUS, Specialisation, _types, checked_specialisations, specialisations

# Specialisations per architecture, compiled so many to a test: two minutes on 2 cores.
SAMPLES = {75: 16, 80: 32, 86: 16, 89: 16, 90: 40, 100: 16, 120: 16}
PART = 8
# Another worker on the same core takes up to half of it, all the time: a kernel of 1.4 s took 2.6 in three tries.
SECONDS = compile_table.SECONDS * (2 if "PYTEST_XDIST_WORKER" in os.environ else 1)
PARTS = [(architecture, start) for architecture, count in SAMPLES.items() for start in range(0, count, PART)]


@pytest.fixture(autouse=True)
def _nvrtc():
    try:
        nvrtc.library()
    except nvrtc.NvrtcUnavailableError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def test_every_architecture_is_looked_at():
    assert set(SAMPLES) == set(GPUS) == {75, 80, 86, 89, 90, 100, 120}


@pytest.mark.parametrize(("architecture", "start"), PARTS, ids=[f"sm_{a}-{start}" for a, start in PARTS])
def test_kernels(architecture, start):
    chosen = compile_table.sample(architecture, SAMPLES[architecture])[start : start + PART]
    rows = [compile_table.compiled(architecture, made, SECONDS) for made in chosen]
    print(compile_table.table(rows))  # shown when the test fails
    assert not [f"{row.made.spec} {why}" for row in rows for why in failures(row, SECONDS)]


@pytest.mark.parametrize("architecture", GPUS)
def test_all_sources_are_found(architecture):
    found = {made.spec.source for made in specialisations(architecture)}
    there = {path.name for path in _launch.cuda_sources().glob("*.cu")}
    newer = {"line_scan_slices.cu", "line_scan_tiles.cu"}  # asynchronous copies came with sm_80
    assert found == (there - newer if architecture < 80 else there)


@pytest.mark.parametrize("architecture", GPUS)
def test_every_kernel_is_compiled(architecture):
    found = {made.spec.entry for made in compile_table.sample(architecture, SAMPLES[architecture])}
    assert found == {made.spec.entry for made in specialisations(architecture)}


def test_what_check_launches_is_of_types_that_are_compiled():
    """Which kernels there are is found in two ways: for a user's check, and for what is compiled here."""
    launched = {(made.spec.entry, types_of(made)) for made in checked_specialisations(90)}
    known = {(t.x[0], t.weight[0], t.h[0], str(int(t.adjoint)), str(int(t.merging))) for t in _types()}
    for entry in ("line_scan_slices", "line_scan_tiles"):
        assert {types for name, types in launched if name == entry} <= known
    plain = {types for name, types in launched if name == "line_scan_forward"}
    assert plain <= {types[:3] for types in known}
    tuned = {types for name, types in launched if name == "line_scan_slices"}
    assert tuned >= {
        (x, x, x, "0", merging) for x in ("float", "double", "__half", "__nv_bfloat16") for merging in "01"
    }
    assert tuned >= {
        ("__half", "float", "float", "0", "0"),
        ("__half", "__half", "float", "1", "0"),
        ("float", "float", "float", "1", "0"),
        ("__half", "float", "__half", "0", "1"),
    }


NAMES = ("SCALAR", "WEIGHT", "RESULT", "ADJOINT", "MERGING")


def types_of(made):
    defines = dict(made.spec.defines)
    return tuple(defines[name] for name in NAMES if name in defines)


def test_every_data_type_and_option_is_found():
    defines = [dict(made.spec.defines) for made in specialisations(90)]
    for name in ("SCALAR", "HIDDEN", "RESULT", "SUM", "WEIGHT"):
        assert {d[name] for d in defines if name in d} == {"float", "double", "__half", "__nv_bfloat16"}
    assert {d["METHOD"] for d in defines if "METHOD" in d} == {"Sigmoid", "Softmax"}


# --- the rules bite ---------------------------------------------------------------------------------------------------


def kernel(text, defines=(), architecture=90, threads=256, **launch):
    spec = KernelSpec("example.cu", "example", defines)
    made = Specialisation(spec, {threads}, **launch)
    options = [f"-D{name}={value}" for name, value in defines]
    source = f'extern "C" __global__ void {text}'
    return Row(architecture, made, nvrtc.compile_kernel(source, options, "example", architecture))


SPILLING = """__launch_bounds__(1024) example(const double* from, double* to) {
  double kept[64];
  for (int k = 0; k < 64; ++k) kept[k] = from[threadIdx.x + 1024 * k];
  __syncthreads();
  for (int k = 0; k < 64; ++k) to[threadIdx.x + 1024 * k] = kept[k] * kept[63 - k];
}"""
INDEXED = """example(const int* from, int* to) {
  int kept[256];
  for (int k = 0; k < 256; ++k) kept[k] = from[256 * threadIdx.x + k];
  to[threadIdx.x] = kept[from[threadIdx.x] & 255];
}"""
SMALL = "example(float* to) { to[threadIdx.x] = 1; }"


def test_a_kernel_that_keeps_the_rules():
    row = kernel(SMALL)
    assert failures(row) == []
    assert 0 < row.compiled.registers <= 16
    assert 4 <= row.compiled.instructions <= 16
    assert (row.compiled.spilled_bytes, row.compiled.local_bytes, row.shared_bytes) == (0, 0, 0)


@pytest.mark.parametrize("architecture", GPUS)
def test_spills_and_local_memory_are_seen(architecture):
    spilling, indexed = kernel(SPILLING, architecture=architecture), kernel(INDEXED, architecture=architecture)
    assert spilling.compiled.spilled_bytes > 0
    assert indexed.compiled.spilled_bytes == 0 < 1024 == indexed.compiled.local_bytes
    strict = architecture in (80, 90)
    assert any("spills" in why for why in failures(spilling)) == strict
    assert any("local memory" in why for why in failures(indexed)) == strict


def test_shared_memory_is_counted():
    text = "example(int* to) { __shared__ int own[256]; own[threadIdx.x] = 1; __syncthreads(); to[0] = own[to[1]]; }"
    assert kernel(text, shared_bytes=5000).shared_bytes == 1024 + 5000
    assert failures(kernel(text, shared_bytes=226 * 1024)) == []
    assert "takes 232449 bytes of shared memory" in str(failures(kernel(text, shared_bytes=226 * 1024 + 1)))


@pytest.mark.parametrize(
    ("limit", "options"),
    [
        (8, {"threads": 256}),  # 2048 threads
        (32, {"threads": 32}),  # 32 blocks
        (3, {"threads": 32, "shared_bytes": 70 * 1024}),  # 71 KB each of 228
        (2, {"threads": 96, "shared_bytes": 100 * 1024}),
    ],
)
def test_residency(limit, options):
    assert compile_table.resident_blocks(kernel(SMALL, **options)) == limit
    assert failures(kernel(SMALL, (("BLOCKS", str(limit)),), **options)) == []
    too_many = failures(kernel(SMALL, (("BLOCKS", str(limit + 1)),), **options))
    assert too_many == [f"fits {limit} times on a multiprocessor; the plan assumes {limit + 1}"]
    fits = 132 * limit
    assert failures(kernel(SMALL, cooperative_blocks=fits, **options)) == []
    assert f"of which {fits} fit" in str(failures(kernel(SMALL, cooperative_blocks=fits + 1, **options)))


def test_residency_by_registers():
    row = kernel(SPILLING, threads=160)  # five warps, which a quarter of a multiprocessor's registers each may hold
    assert row.compiled.registers == 64
    assert compile_table.resident_blocks(row) == 6  # 32 warps


def test_errors_of_the_compiler_are_shown():
    with pytest.raises(nvrtc.NvrtcError, match=r"(?s)NVRTC_ERROR_COMPILATION.*undefined_name"):
        kernel("example(int* to) { to[0] = undefined_name; }")


@pytest.mark.parametrize("architecture", GPUS)
def test_instructions_as_the_disassembler_counts_them(architecture, tmp_path):
    found = [folder / "bin" / "nvdisasm" for folder in nvrtc.nvidia_folders()]
    disassembler = next((str(path) for path in found if path.is_file()), shutil.which("nvdisasm"))
    if disassembler is None:
        pytest.skip("nvdisasm is not installed (pip install nvidia-cuda-nvdisasm)")
    made = next(m for m in specialisations(architecture) if m.spec.entry == "normalize_backward")
    text, options = _launch.compiler_input(made.spec)
    cubin, _, _ = nvrtc.compile_cubin(text, options, architecture)
    Path(tmp_path, "kernel.cubin").write_bytes(cubin)
    listing = subprocess.run(
        [disassembler, "-c", str(tmp_path / "kernel.cubin")], capture_output=True, text=True, check=True
    ).stdout
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", listing, re.MULTILINE)
    counted = sum(not re.search(r"\bNOP\b", operation) for operation in operations)
    assert counted == nvrtc.count_instructions(cubin, "normalize_backward")
