"""Try shapes of the tile kernel and of the kernel for small images near those that are planned, on a GPU.

python -m benchmarks.sweep [--shapes NAME …] [--cases "bfloat16 SH" …] [--pass adjoint] [--tries 40] [--seconds 60]
    [--output FILE.json]
python -m benchmarks.sweep --shapes batch_1k --cases "bfloat16 SH" --tiles 4,2,2,4,32,8,32,2,8,0,1,64 …

Tiles are random changes of the planned ones, or, in the order of the fields of `Tiles`, those that are named. Each
result is compared bit for bit with the planned kernel's; times are medians of graph replays over rotating buffers.
The rules of gspn2_cupy/_shapes_tiles.py and _shapes_slices.py come from such sweeps, as docs/optimization_log.md tells.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.cases import SHAPES
from benchmarks.gpu import opened
from benchmarks.runner import command_line, commit, machine
from gspn2_cupy import _launch, _plan_scan, _plan_slices, _plan_tiles, _steps
from gspn2_cupy._arrays import data_type
from gspn2_cupy._plan import Layout, LineScan
from gspn2_cupy._plan_slices import Slices
from gspn2_cupy._plan_tiles import Tiles
from gspn2_cupy.reference import ALL_DIRECTIONS

DIRECTIONS = ("left_to_right", "top_to_bottom")
CASES = ("float32 PC", "bfloat16 SH")
STEPS = {  # values that a field of Tiles is tried with
    "rows": (1, 2, 4, 8),
    "sets": (1, 2, 4),
    "warps": (1, 2, 3, 4, 5, 6, 8, 9),
    "copiers": (2, 4, 8),
    "lines": (4, 8, 16, 32, 64),
    "inner": (0, 8, 16, 32),
    "outer": (0, 16, 32, 64),
    "stages": (2, 3, 4, 6),
    "group": (2, 4, 8),
    "ahead": (True, False),
    "cluster": (1, 2, 4, 8),
    "fetch": (64, 128, 256),
}


PASSES = ("forward", "adjoint", "merging")


def layouts_of(name, case, which):
    """The layouts of x, weight, λ and h; of an adjoint dh, weight, none and g, which is of the state's type.

    Merging, h is the sum of four directions after the second, of the state's type, too.
    """
    dtype, sharing = case.split()
    kind = data_type(dtype)
    batch, channels, height, width = shape = SHAPES[name][0]
    groups = channels if sharing == "PC" else 1

    def layout(shape, kind=kind):
        strides = [1]
        for size in shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        return Layout(shape, tuple(strides), kind.c_name, kind.itemsize)

    x, weight = layout(shape), layout((batch, groups, 3, height, width))
    return x, weight, None if which == "adjoint" else x, x if which == "forward" else layout(shape, kind.state)


def scan_of(direction, layouts, which):
    """What planners take."""
    x, weight, lam, h = layouts
    merging = which == "merging"
    before = h if merging else None
    return LineScan(direction, None, x, weight, lam, None, h, None, which == "adjoint", merging=merging, before=before)


def tiles_of(plan):
    """The shape of a plan of the tile kernel."""
    defines = dict(plan.spec.defines)
    fields = {field.name: int(defines[field.name.upper()]) for field in dataclasses.fields(Tiles)}
    return Tiles(**fields | {"ahead": bool(fields["ahead"])})


def near(tiles, chance):
    """Change one to three fields of a shape."""
    changes = {field: chance.choice(STEPS[field]) for field in chance.sample(list(STEPS), chance.choice((1, 1, 2, 3)))}
    tiles = dataclasses.replace(tiles, **changes)
    return tiles if tiles.warps > 1 else dataclasses.replace(tiles, inner=0)


def candidates(limits, name, case, direction, which, tries, named=()):
    """Shapes and their plans: the planned one first."""
    scan = scan_of(direction, layouts_of(name, case, which), which)
    planned = (_plan_scan.merging_line_scan if scan.merging else _plan_scan.line_scan)(limits, scan)
    yield "planned", planned
    for tiles in named:
        plan = _plan_tiles.tiles_plan(limits, tiles, scan)
        if plan is not None:
            yield str(dataclasses.astuple(tiles)), plan
    if named:
        return
    channels, across = scan.x.shape[1], scan.width
    shared = scan.groups < channels
    if across <= 64:
        for rows, carried, warps, rounds in itertools.product(
            (1, 2, 4), (1, 2) if shared else (1,), (1, 2, 4, 8) if shared else (1,), (1, 2, 3, 4)
        ):
            slices = Slices(rows, carried, warps, max(1, min(32 // -(-across // rows), channels // carried)), rounds)
            plan = _plan_slices.slices_plan(limits, slices, scan)
            if plan is not None:
                yield str(slices), plan
    if planned.spec.entry != "line_scan_tiles":
        return
    chance, seen, start = random.Random(f"{name}{case}{direction}"), set(), tiles_of(planned)
    for _ in range(100 * tries):
        tiles = near(start, chance)
        if tiles in seen or channels // scan.groups % tiles.sets:
            continue
        seen.add(tiles)
        plan = _plan_tiles.tiles_plan(limits, tiles, scan)
        if plan is not None:
            yield str(tiles), plan
        if len(seen) == tries:
            return


def tiles_from(text):
    """Read the shape of tiles from numbers in the order of its fields; those at the end may be left out."""
    values = dict(zip((field.name for field in dataclasses.fields(Tiles)), map(int, text.split(",")), strict=False))
    return Tiles(**values | {"ahead": bool(values.get("ahead", 1))})


def compile_one(plan):
    """Bring a kernel into CuPy's disk cache."""
    _launch.CupyKernel(plan.spec, None).prepare(0, plan.cooperative)


def sweep(gpu, name, case, direction, which, tried, deadline):
    """Time the candidates of a case; return a record for each, fastest first."""
    launcher, kind = _launch.cupy_launcher(0), data_type(case.split()[0])
    layouts = layouts_of(name, case, which)
    scan = scan_of(direction, layouts, which)
    count = gpu.sets_for(scan.bytes)

    def made(what, layout, seed):
        if layout is None:
            return None
        same = layout.c_name == kind.c_name
        return gpu.random(what, layout.shape, (kind if same else kind.state).numpy_dtype.name, seed)

    inputs = list(zip(("x", "weight", "lam", "h"), layouts, strict=True))
    sets = [[made(*each, 10 * s + k) for k, each in enumerate(inputs)] for s in range(count)]
    copy, expected, records = gpu.copy(scan.bytes).median, None, []
    for label, plan in tried:
        if time.monotonic() > deadline:
            break
        workspace = _steps.scan_workspace(launcher, plan, kind.state)

        def run(s, plan=plan, workspace=workspace):
            for words in workspace:
                if words is not None:
                    words.data.memset_async(0, words.nbytes)
            x, weight, lam, h = sets[s]
            merged = (h, None, None) if scan.merging else ()  # each time a term more
            _launch.run(launcher, plan, x, weight, lam, None, h, None, *workspace, *merged)

        sets[0][3][...] = 0  # what merging adds to
        if not scan.merging:
            gpu.poison(sets[0][3])
        try:
            run(0)
            same = expected is None or bool((sets[0][3].view("uint8") == expected).all())
            expected = sets[0][3].view("uint8").copy() if expected is None else expected
            timing = gpu.time(run, count, 0.03)
        except Exception as error:  # a shape that does not launch is a result too
            print(f"  failed: {label}: {type(error).__name__}: {error}", flush=True)
            continue
        records.append(
            {"shape": name, "case": case, "direction": direction, "pass": which, "tiles": label, "same": same}
            | {"us": timing.median * 1e6, "score": copy / timing.median, "grid": plan.grid[0], "copy_us": copy * 1e6}
            | {"shared_bytes": plan.shared_bytes}
        )
    return sorted(records, key=lambda record: record["us"])


def main():
    """Run a sweep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--directions", nargs="+", default=list(DIRECTIONS), choices=ALL_DIRECTIONS)
    parser.add_argument(
        "--pass", dest="which", default="forward", choices=PASSES, help="adjoints walk in these directions"
    )
    parser.add_argument("--tries", type=int, default=40, help="random shapes of the tile kernel for each case")
    parser.add_argument("--tiles", type=tiles_from, nargs="+", default=(), help="or these")
    parser.add_argument("--seconds", type=float, default=60, help="time limit for all timing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    limits = _launch.cupy_launcher(0).limits
    cases = list(itertools.product(options.shapes, options.cases, options.directions, [options.which]))
    chosen = {case: list(candidates(limits, *case, options.tries, options.tiles)) for case in cases}
    plans = list({(plan.spec, plan.cooperative): plan for tried in chosen.values() for _, plan in tried}.values())
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, plans, chunksize=4))
    print(f"compiled {len(plans)} kernels", flush=True)
    records, deadline = [], time.monotonic() + options.seconds
    with opened() as gpu:
        for left, case in zip(range(len(cases), 0, -1), cases, strict=True):
            until = time.monotonic() + (deadline - time.monotonic()) / left
            found = sweep(gpu, *case, chosen[case], until)
            records += found
            planned = next((record for record in found if record["tiles"] == "planned"), None)
            print(*case, planned and f"planned: {planned['us']:.1f} µs, {planned['score']:.2f}", f"{len(found)} tried")
            for record in found[:5]:
                different = "" if record["same"] else " DIFFERENT BITS"
                print(f"  {record['us']:8.1f} µs {record['score']:.2f} {record['tiles']}{different}", flush=True)
            gpu.release()
            if options.output:
                made = {"machine": machine(""), "commit": commit(), "command": command_line("benchmarks.sweep")}
                options.output.write_text(json.dumps({**made, "results": records}, indent=1))


if __name__ == "__main__":
    main()
