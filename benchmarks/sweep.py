"""Time shapes of the tile kernel against the plain kernel and an equal-bytes copy, on a GPU; correct results only.

python -m benchmarks.sweep --seconds 60 --output FILE.json [--shapes NAME …]
"""

import argparse
import itertools
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cupy as cp

from gspn2_cupy import _launch, _plan, _plan_tiles, _steps

SHAPES = {
    "batch": (16, 8, 1024, 1024),
    "one_1k": (1, 8, 1024, 1024),
    "one_4k": (1, 8, 4096, 4096),
    "vit_56": (32, 96, 56, 56),
    "vit_14": (32, 384, 14, 14),
    "wide_32": (32, 1152, 32, 32),
    "latent_128": (8, 64, 128, 128),
    "two_2k": (2, 16, 2048, 2048),
    "huge_16k": (1, 4, 16384, 16384),
}


LIMIT = 40  # shapes tried per case
CLUSTERS = (1,)  # of the sizes 1 (bands in global memory), 2, 4 and 8
COPY = cp.RawKernel(
    """extern "C" __global__ void copy(const double2* from, double2* to, long long count) {
         for (long long i = blockIdx.x * 512ll + threadIdx.x; i < count; i += gridDim.x * 512ll) to[i] = from[i];
       }""",
    "copy",
)


def timed(run, sets, repeats=5):
    """Median milliseconds of run(set): a captured graph rotates over the sets, so the host does not count."""
    for s in sets[:2]:
        run(s)
    cp.cuda.Device().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for s in sets:
            run(s)
        graph = stream.end_capture()
        start, stop = cp.cuda.Event(), cp.cuda.Event()
        times = []
        for _ in range(repeats + 1):
            start.record()
            graph.launch()
            stop.record()
            stop.synchronize()
            times.append(cp.cuda.get_elapsed_time(start, stop) / len(sets))
    return sorted(times[1:])[repeats // 2]


def candidates(shape, direction, dtype, groups, width):
    """Shapes of the tile kernel worth a try."""
    vector = 16 // cp.dtype(dtype).itemsize
    along = direction in _plan.HORIZONTAL
    per_group = shape[1] // groups
    shares = [(c, s) for c, s in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2)) if per_group % (c * s) == 0]
    rows = [r for r in (1, 2, 4) if width % r == 0] if along else [vector]
    if width <= 128:
        rows = rows[-1:] if along and width > 64 else rows[-2:]
    depths = (2 * vector, 4 * vector) if along else (4, 8)
    for r, (c, sets), copiers, lines, stages in itertools.product(rows, shares, (2, 4), depths, (2, 3, 4)):
        group = vector if along else 2
        if width <= 32 * r:
            yield _plan_tiles.Tiles(r, c, sets, 1, copiers, lines, 0, stages, group)
        elif width > 128:
            for halo, cluster in itertools.product((8, 16, 32), CLUSTERS):
                step = 32 * r - 2 * halo
                if halo % lines or halo % r or halo % vector or step <= 0 or (r == 1 and halo > 8):
                    continue
                if cluster > 1:
                    choices = [max(1, -(-(-(-width // cluster) + 2 * halo - 32 * r) // step) + 1)]
                else:
                    choices = [1, 2, 4, 8]
                for warps in choices:
                    if warps * sets + copiers <= 20 and lines * stages >= (16 if along else 8):
                        yield _plan_tiles.Tiles(r, c, sets, warps, copiers, lines, halo, stages, group, cluster)


def compile_one(spec):
    _launch.CupyKernel(spec, None).prepare(0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--directions", nargs="*", default=["left_to_right", "top_to_bottom"])
    parser.add_argument("--tiles", help="one shape only, e.g. 4,1,1,1,2,8,0,2,4; launched twice, for a profiler")
    parser.add_argument("--cases", nargs="*", default=["float32 PC", "bfloat16 SH"])
    options = parser.parse_args()
    launcher = _launch.cupy_launcher(0)
    print(launcher.limits)
    if options.tiles:
        return once(launcher, options)
    records = []
    cases = list(itertools.product(options.shapes, options.cases, options.directions))
    started = time.time()
    chosen = {case: list(itertools.islice(plans(launcher.limits, *case), LIMIT)) for case in cases}
    specs = {plan.spec for tried in chosen.values() for _, plan in tried}
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, specs, chunksize=4))
    print(f"compiled {len(specs)} in {time.time() - started:.0f} s", flush=True)
    deadline = time.time() + options.seconds
    for left, (name, case, direction) in zip(range(len(cases), 0, -1), cases, strict=True):
        budget = (deadline - time.time()) / left
        records += sweep(launcher, name, case, direction, chosen[name, case, direction], time.time() + budget)
        if options.output:
            Path(options.output).write_text(json.dumps(records))
    return records


def once(launcher, options):
    """Launch one shape twice, for a profiler to look at."""
    name, case, direction = options.shapes[0], options.cases[0], options.directions[0]
    dtype, sharing = case.split()
    shape = SHAPES[name]
    x, weight, lam, h = arrays(shape, data_type(dtype), shape[1] if sharing == "PC" else 1)
    tiles = _plan_tiles.Tiles(*map(int, options.tiles.split(",")))
    layouts = [_steps.layout(a) for a in (x, weight, lam)]
    plan = _plan_tiles.tiles_plan(launcher.limits, tiles, direction, None, *layouts, None, _steps.layout(h), None)
    print(plan)
    mail = cp.zeros(plan.workspace, "uint64") if plan.workspace else None
    for _ in range(2):
        if mail is not None:
            mail.fill(0)
        _launch.run(launcher, plan, x, weight, lam, None, h, None, mail)
    cp.cuda.Device().synchronize()


def arrays(shape, dtype, groups):
    batch, _, height, width = shape
    make = lambda s: cp.random.random(s, dtype="float32").astype(dtype)  # noqa: E731
    weight = make((batch, groups, 3, height, width))
    weight *= cp.asarray(0.33, weight.dtype)
    return make(shape), weight, make(shape), cp.empty(shape, dtype)


def data_type(name):
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return name


def plans(limits, name, case, direction):
    """The candidates of a case that fit the device, with their plans."""
    dtype, sharing = case.split()
    batch, channels, height, width = shape = SHAPES[name]
    groups = channels if sharing == "PC" else 1
    kind = _steps.data_type(cp.dtype(data_type(dtype)))

    def layout(*shape):
        strides = [1]
        for size in shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        return _plan.Layout(shape, tuple(strides), kind.c_name, kind.itemsize)

    x, weight = layout(*shape), layout(batch, groups, 3, height, width)
    if width * kind.itemsize % 16:
        return
    across = height if direction in _plan.HORIZONTAL else width
    tried = list(candidates(shape, direction, data_type(dtype), groups, across))
    random.Random(name + case).shuffle(tried)
    for tiles in tried:
        plan = _plan_tiles.tiles_plan(limits, tiles, direction, None, x, weight, x, None, x, None)
        if plan is not None and plan.shared_bytes > 16000:
            yield tiles, plan


def sweep(launcher, name, case, direction, tried, deadline):
    dtype, sharing = case.split()
    dtype = data_type(dtype)
    shape = SHAPES[name]
    groups = shape[1] if sharing == "PC" else 1
    itemsize = cp.dtype(dtype).itemsize
    elements = shape[0] * shape[2] * shape[3] * (3 * shape[1] + 3 * groups)
    count = max(2, min(24, int(6e8 // (elements * itemsize)) + 1))
    sets = [arrays(shape, dtype, groups) for _ in range(count)]
    moved = elements * itemsize
    half = [(cp.empty(moved // 32, "complex128"), cp.empty(moved // 32, "complex128")) for _ in range(count)]
    copy = timed(lambda s: COPY((132 * 8,), (512,), (s[0], s[1], s[0].size)), half)
    del half
    x, weight, lam, h = sets[0]
    expected = cp.empty_like(x)
    _steps.scan(launcher, x, weight, lam, None, expected, None, direction, None)
    plain = float("nan")
    if moved < 5e8:
        plain = timed(lambda s: _steps.scan(launcher, *s[:3], None, s[3], None, direction, None), sets, 1)
    print(
        f"\n{name} {case} {direction}: {moved / 1e6:.1f} MB, copy {copy * 1e3:.1f} us = {moved / copy / 1e9:.2f} TB/s, "
        f"plain {plain * 1e3:.1f} us score {copy / plain:.2f}",
        flush=True,
    )
    records = [{"shape": name, "case": case, "direction": direction, "copy": copy, "plain": plain, "moved": moved}]
    results = []
    for tiles, plan in tried:
        if time.time() > deadline:
            break
        mail = cp.zeros(max(plan.workspace, 1), "uint64")

        def run(s, plan=plan, mail=mail):
            if plan.workspace:
                mail.data.memset_async(0, mail.nbytes)
            _launch.run(launcher, plan, s[0], s[1], s[2], None, s[3], None, mail if plan.workspace else None)

        try:
            h.view("uint8").fill(255)
            run(sets[0])
            wrong = int((h.view("uint8") != expected.view("uint8")).sum())
            ms = timed(run, sets, 3)
        except Exception as error:  # a shape that does not launch is a result too
            print("  failed", tiles, type(error).__name__, str(error)[:200], flush=True)
            continue
        if wrong:
            print("  WRONG", wrong, tiles, plan.grid, flush=True)
            continue
        results.append((ms, tiles, plan))
        records.append(
            {
                "shape": name,
                "case": case,
                "direction": direction,
                "ms": ms,
                "score": copy / ms,
                "grid": plan.grid[0],
                "shared": plan.shared_bytes,
                "tiles": vars(tiles),
            }
        )
    for ms, tiles, plan in sorted(results, key=lambda r: r[0])[:5]:
        print(f"  {ms * 1e3:8.1f} us score {copy / ms:.2f} {tiles} grid={plan.grid[0]} shared={plan.shared_bytes}")
    print(f"  tried {len(results)} of {len(tried)}", flush=True)
    return records


if __name__ == "__main__":
    main()
