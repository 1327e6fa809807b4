"""Latency: clocks per scan step by way of exchange, round trips between blocks, clusters; idle and beside traffic."""

import numpy
from cupy.cuda import Stream
from cupy_backends.cuda.api import driver

from benchmarks.probes.gpu import MEBI, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, Gpu, Report, allow_shared, kernels

ARENA = 4096 * MEBI
TRAFFIC_SHARED = 120 * 1024  # one streaming block per multiprocessor


class Loaded:
    """Runs a launch idle or while `traffic` streams through HBM from every multiprocessor."""

    def __init__(self, report: Report, expressions: list[str]) -> None:
        self.report, self.gpu = report, Gpu(report, ARENA)
        self.kernels = kernels("latency.cu", ["traffic", "set_word", "clock_rate", *expressions])
        allow_shared(self.kernels["traffic"], TRAFFIC_SHARED)
        self.control = self.gpu.words(1)  # two 32-bit words: blocks started, stop
        self.traffic_report = self.gpu.words(3 * self.gpu.multiprocessors)
        self.other = Stream(non_blocking=True)
        self.epoch = 1
        rate = self.gpu.words(2)
        self.kernels["clock_rate"]((1,), (1,), (rate, 20_000_000))
        clocks, nanoseconds = rate.get(stream=self.gpu.stream).tolist()
        self.gpu.stream.synchronize()
        self.ghz = clocks / max(nanoseconds, 1)
        report.figure("clock", ghz=self.ghz)
        report.line("clock", f"{self.ghz:.3f} GHz", "1.755 assumed")
        self.run(lambda expected: None, loaded=True)  # warm-up

    def run(self, launch, loaded: bool) -> dict:
        """Call `launch(expected)` on the main stream; says how fast the traffic was and whether it lasted."""
        gpu, blocks = self.gpu, self.gpu.multiprocessors
        gpu.clear(self.control)
        gpu.clear(self.traffic_report)
        gpu.stream.synchronize()
        if not loaded:
            launch(numpy.uint32(0))
            gpu.stream.synchronize()
            return {"load": "idle"}
        quarter = gpu.size // 4
        args = (gpu.base, gpu.base + 2 * quarter, quarter // 16, self.control, self.traffic_report, 60_000_000)
        with self.other:
            self.kernels["traffic"]((blocks,), (512,), args, shared_mem=TRAFFIC_SHARED)
        try:
            launch(numpy.uint32(blocks))
        finally:
            self.kernels["set_word"]((1,), (1,), (self.control.data.ptr + 4, numpy.uint32(1)))
            gpu.stream.synchronize()
            self.other.synchronize()
        moved, clocks, stopped = self.traffic_report.get(stream=gpu.stream).reshape(-1, 3).T
        gpu.stream.synchronize()
        load = float(moved.sum() / max(int(clocks.max()), 1) * self.ghz)
        return {"load": "loaded", "traffic_gb_s": load, "traffic_lasted": bool(stopped.all())}

    def median(self, launch, out, loaded: bool, repeats: int = 5) -> tuple[float, dict]:
        """Median over repeats of the median of the non-zero words of `out`; 0 if any repeat timed out."""
        values, state = [], {}
        for _ in range(repeats):
            self.gpu.clear(out)
            state = self.run(launch, loaded)
            words = out.get(stream=self.gpu.stream).astype(numpy.float64)
            self.gpu.stream.synchronize()
            values.append(0.0 if (words == 0).any() else float(numpy.median(words)))
        return (0.0 if min(values) == 0 else float(numpy.median(values))), state

    def steps(self, name: str, grid: int, threads: int, steps: int, loaded: bool, middle=()) -> tuple[float, dict]:
        """Clocks per step of a kernel (clocks, sink, ..., control, expected) that writes one word per warp."""
        clocks = self.gpu.words(grid * threads // 32)

        def launch(expected: numpy.uint32) -> None:
            made = [value() if callable(value) else value for value in middle]
            args = (clocks, self.gpu.sink, *made, self.control, expected)
            self.kernels[name]((grid,), (threads,), args)

        value, state = self.median(launch, clocks, loaded)
        return value / steps, state

    def next_epoch(self, count: int) -> numpy.uint32:
        self.epoch += count
        return numpy.uint32(self.epoch - count)

    def allow_clusters_of_16(self, *names: str) -> None:
        for name in names:
            driver.funcSetAttribute(self.kernels[name].kernel.ptr, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)


def _note(state: dict) -> str:
    if state.get("load") != "loaded":
        return ""
    return "" if state["traffic_lasted"] else "(!traffic ended early)"


def steps(report: Report) -> None:
    """Scan steps inside a warp and inside a block."""
    variants = ("select", "tuned", "tuned + LDS.128")
    names = [f"step_latency<{rl}, {v}>" for rl in (1, 2, 4) for v in range(3)]
    gpu = Loaded(report, [*names, "barrier_steps<1, false>", "barrier_steps<1, true>"])
    count, everywhere = 2048, gpu.gpu.multiprocessors
    told = {
        (1, 0): "45-48",
        (1, 1): "32-38",
        (2, 1): "half the shuffles per row",
        (4, 1): "for latency-bound cases",
        (1, 2): "MIO model: least certain",
    }
    for rl in (1, 2, 4):
        for variant in range(3):
            cells = []
            for grid, loaded in ((1, False), (everywhere, False), (everywhere, True)):
                for warps in (1, 4, 8, 16):
                    name = f"step_latency<{rl}, {variant}>"
                    too_many = 32 * warps > gpu.kernels[name].max_threads_per_block  # for its registers
                    beside = loaded and warps == 16 and rl == 4  # and those of the traffic
                    if (grid == 1 and warps > 4) or too_many or beside:
                        continue
                    value, state = gpu.steps(name, grid, 32 * warps, count, loaded, (numpy.int32(count),))
                    values = {"rows_per_lane": rl, "variant": variants[variant], "grid": grid, "warps": warps}
                    report.figure("warp", **values, clocks=value, **state)
                    if grid > 1:
                        cells.append(f"{warps}w{'+load' if loaded else ''} {value:.1f}{_note(state)}")
            told_here = told.get((rl, variant), "")
            report.line(f"clk/step RL {rl} {variants[variant]}", " ".join(cells), told_here)
    for shuffle in ("false", "true"):
        cells = []
        for loaded in (False, True):
            for warps in (4, 8, 16, 32):
                name = f"barrier_steps<1, {shuffle}>"
                value, state = gpu.steps(name, everywhere, 32 * warps, count, loaded, (numpy.int32(count),))
                values = {"edges_only": shuffle == "true", "grid": everywhere, "warps": warps}
                report.figure("block barrier", **values, clocks=value, **state)
                cells.append(f"{warps}w{'+load' if loaded else ''} {value:.1f}{_note(state)}")
        what = "warp edges" if shuffle == "true" else "whole line"
        report.line(f"clk/step, barrier, {what}", " ".join(cells), "85-95")


def exchange(report: Report) -> None:
    """Between blocks through L2: round trips of tagged words, scan steps with a K-row halo refreshed every K steps."""
    gpu = Loaded(report, [f"ping_pong<{v}>" for v in (0, 1, 2)] + [f"halo_steps<{rl}, 1>" for rl in (1, 2, 4)])
    mailbox, rounds = gpu.gpu.words(1024 * 128), 500
    ways = ("L2", "DSMEM", "DSMEM st.async")
    for via in (0, 1, 2):
        for words in (1, 32):
            cells = []
            for pairs in (1, gpu.gpu.multiprocessors // 2):
                for loaded in (False, True):
                    out = gpu.gpu.words(4 * pairs)

                    def launch(expected, out=out, via=via, words=words, pairs=pairs):
                        args = (out, mailbox, numpy.int32(rounds), numpy.int32(words), gpu.next_epoch(2 * rounds))
                        gpu.kernels[f"ping_pong<{via}>"]((2 * pairs,), (32,), (*args, gpu.control, expected))

                    clocks = []
                    for _ in range(5):
                        gpu.gpu.clear(out)
                        state = gpu.run(launch, loaded)
                        report_words = out.get(stream=gpu.gpu.stream).reshape(-1, 2)
                        gpu.gpu.stream.synchronize()
                        clocks.append(report_words[:, 0].astype(float) / (2 * rounds))
                    failed = any((c == 0).any() for c in clocks)
                    middle, worst = float(numpy.median(clocks)), float(numpy.max(clocks))
                    values = {"way": ways[via], "words": words, "pairs": pairs, "failed": failed}
                    apart = report_words[:, 1].tolist() if pairs == 1 else None
                    report.figure("one way", **values, clocks=middle, worst=worst, multiprocessors=apart, **state)
                    name = f"{pairs}p{'+load' if loaded else ''}"
                    cells.append(f"{name} {middle:.0f}{' FAILED' if failed else ''}{_note(state)}")
            told = "about 1100 (L2 round trip 270-600)" if via == 0 else "about 200-300"
            report.line(f"one way {ways[via]} {words}w clk", " ".join(cells), told)
    told = {16: "105", 32: "70"}
    for rl, halo in ((1, 1), (1, 4), (1, 8), (2, 8), (2, 16), (4, 8), (4, 16), (4, 32)):
        cells = []
        for bands, grid in ((2, 2), (8, 128), (64, 128), (16, 512)):
            for loaded in (False, True):
                exchanges = max(32, 2048 // halo)
                middle = (
                    *map(numpy.int32, (exchanges, halo, bands)),
                    mailbox,
                    lambda n=exchanges: gpu.next_epoch(n),
                )
                name, total = f"halo_steps<{rl}, 1>", exchanges * halo
                value, state = gpu.steps(name, grid, 32, total, loaded, middle)
                values = {"rows_per_lane": rl, "halo": halo, "bands": bands, "grid": grid}
                report.figure("halo L2", **values, clocks=value, **state)
                cells.append(f"{bands}/{grid}{'+load' if loaded else ''} {value:.0f}{_note(state)}")
        report.line(f"clk/step L2 halo RL {rl} K {halo}", " ".join(cells), told.get(halo, ""))


def clusters(report: Report) -> None:
    """Clusters: barrier, exchange every step or every K steps through DSMEM, how many are resident."""
    sizes = (2, 4, 8, 16)
    names = [f"cluster_barriers<{c}, {o}>" for c in sizes for o in ("true", "false")]
    names += [f"barrier_steps<{c}, true>" for c in sizes] + [f"cluster_residency<{c}>" for c in sizes]
    gpu = Loaded(report, [*names, *(f"halo_steps<{rl}, {c}>" for rl in (1, 2, 4) for c in sizes)])
    try:
        gpu.allow_clusters_of_16(*(name for name in gpu.kernels if "<16" in name or ", 16>" in name))
    except Exception as error:
        report.errors.append(f"clusters of 16: {error!r}")

    def attempt(action) -> str:
        try:
            return action()
        except driver.CUDADriverError as error:  # a cluster that cannot be launched leaves the context usable
            report.errors.append(repr(error))
            return "refused"

    for size in sizes:
        out = gpu.gpu.words(64 // size * size)

        def barrier(size=size, out=out) -> str:
            cells = []
            for ordered in ("true", "false"):
                name = f"cluster_barriers<{size}, {ordered}>"

                def launch(expected, name=name):
                    gpu.kernels[name]((64 // size * size,), (256,), (out, numpy.int32(1000)))

                value, _ = gpu.median(launch, out, False)
                report.figure("cluster barrier", size=size, ordered=ordered == "true", clocks=value)
                cells.append(f"{'release/acquire' if ordered == 'true' else 'relaxed'} {value:.0f}")
            return ", ".join(cells)

        report.line(f"barrier, cluster of {size} clk", attempt(barrier), "200-300")
    for size in sizes:

        def each_step(size=size) -> str:
            cells = []
            for loaded in (False, True):
                grid = 64 // size * size
                name = f"barrier_steps<{size}, true>"
                value, state = gpu.steps(name, grid, 256, 1024, loaded, (numpy.int32(1024),))
                report.figure("cluster barrier every step", size=size, grid=grid, clocks=value, **state)
                cells.append(f"{'+load ' if loaded else ''}{value:.0f}{_note(state)}")
            return " ".join(cells)

        report.line(f"clk/step, cluster barrier of {size}", attempt(each_step), "about 300")
    for rl, halo in ((1, 1), (1, 4), (1, 8), (2, 8), (4, 8), (4, 16)):
        cells = []
        for size in sizes:

            def tagged(size=size, rl=rl, halo=halo) -> str:
                cells = []
                for loaded in (False, True):
                    exchanges, grid = max(32, 2048 // halo), 64 // size * size
                    middle = (*map(numpy.int32, (exchanges, halo, size)), gpu.gpu.sink)
                    middle = (*middle, lambda n=exchanges: gpu.next_epoch(n))
                    name, total = f"halo_steps<{rl}, {size}>", exchanges * halo
                    value, state = gpu.steps(name, grid, 32, total, loaded, middle)
                    report.figure("halo DSMEM", rows_per_lane=rl, halo=halo, size=size, clocks=value, **state)
                    cells.append(f"c{size}{'+load' if loaded else ''} {value:.0f}{_note(state)}")
                return " ".join(cells)

            cells.append(attempt(tagged))
        told = "75" if halo == 8 else "about 300" if halo == 1 else ""
        report.line(f"clk/step DSMEM halo RL {rl} K {halo}", " ".join(cells), told)
    for size in sizes:
        cells = []
        for shared in (0, 100 * 1024, 200 * 1024):

            def resident(size=size, shared=shared) -> str:
                kernel = gpu.kernels[f"cluster_residency<{size}>"]
                allow_shared(kernel, shared)
                blocks = 1024 // size * size
                out = gpu.gpu.words(3 * blocks)
                kernel((blocks,), (256,), (out, 200_000), shared_mem=shared)
                found = together(out.get(stream=gpu.gpu.stream)) // size
                report.figure("resident clusters", size=size, shared=shared, clusters=found)
                return f"{shared // 1024} KB {found}"

            cells.append(attempt(resident))
        told = {8: "16 of one block per SM", 16: "7-8 of one block per SM"}.get(size, "")
        report.line(f"resident clusters of {size}", ", ".join(cells), told)


def together(words: numpy.ndarray) -> int:
    """Blocks present at once, from their (start, end, multiprocessor)."""
    times = words.reshape(-1, 3).astype(numpy.int64)
    changes = sorted([(t, 1) for t in times[:, 0].tolist()] + [(t, -1) for t in times[:, 1].tolist()])
    present = most = 0
    for _, change in changes:
        present += change
        most = max(most, present)
    return most
