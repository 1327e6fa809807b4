"""From results files to pictures: scores, time against the image's side, speed-up, errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.cases import ABBREVIATIONS, OPERATIONS, SHAPES
from benchmarks.report import ARROWS, heading

Content = dict[str, Any]
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _ours(content: Content) -> list[dict[str, Any]]:
    return [r for r in content["cases"] if r["status"] == "ok" and r["implementation"] == "ours"]


def _kind(record: dict[str, Any]) -> str:
    kind = f"{ABBREVIATIONS[record['dtype']]} {ABBREVIATIONS[record['weights']]}"
    return f"{OPERATIONS[record['operation']].title}, {kind} {ARROWS[record['direction']]}"


def _by(records: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def scores(content: Content, axes: Any) -> bool:
    """Draw the score of each operation by shape."""
    groups = _by(_ours(content), _kind)
    names = [name for name in SHAPES if any(r["shape_name"] == name for r in _ours(content))]
    for i, (kind, records) in enumerate(groups.items()):
        places = [names.index(r["shape_name"]) + 0.8 * ((i + 0.5) / len(groups) - 0.5) for r in records]
        axes.bar(places, [r["score"] for r in records], 0.8 / len(groups), label=kind)
    axes.set_xticks(range(len(names)), [f"{name}\n{SHAPES[name][0]}" for name in names], fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 1.25 * max([1.0, *(r["score"] for records in groups.values() for r in records)]))
    axes.set_ylabel("score: time of an equal-bytes copy / time")
    if groups:
        axes.legend(fontsize=6, ncols=2)
    return bool(groups)


def times(content: Content, axes: Any) -> bool:
    """Draw time per channel and image against the image's side, with the floor that memory sets."""
    bandwidth = content.get("copy", {}).get("gbps")
    groups = _by((r for r in _ours(content) if r["operation"] == "forward"), _kind)
    for i, (kind, records) in enumerate(groups.items()):
        records = sorted(records, key=lambda r: r["shape"][2])
        sides = [math.sqrt(r["shape"][2] * r["shape"][3]) for r in records]
        slices = [r["shape"][0] * r["shape"][1] for r in records]
        median = [r["time"]["median"] / n * 1e6 for r, n in zip(records, slices, strict=True)]
        axes.plot(sides, median, "o-", color=f"C{i}", label=kind)
        if bandwidth:
            floor = [r["bytes"] / bandwidth / 1e3 / n for r, n in zip(records, slices, strict=True)]
            axes.plot(sides, floor, "--", color=f"C{i}", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("side of the image, pixels")
    axes.set_ylabel("µs per channel and image (dashed: bytes / bandwidth of the large copy)")
    if groups:
        axes.legend(fontsize=7)
    return bool(groups)


def speedups(content: Content, axes: Any) -> bool:
    """Draw how much longer each baseline takes than ours."""
    ours = {r["id"]: r for r in _ours(content)}
    bars = []
    for r in content["cases"]:
        own = ours.get(r["id"].removesuffix(f"-{r['implementation']}"))
        if r["status"] == "ok" and r["implementation"] != "ours" and own is not None:
            name = f"{r['implementation'].replace('_', ' ')}, {tuple(r['shape'])}, {_kind(r)}"
            bars.append((name, r["time"]["median"] / own["time"]["median"]))
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars])
    for place, (_, ratio) in enumerate(bars):
        axes.text(ratio, place, f" {ratio:.1f}×", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("time of the baseline / time of ours")
    return bool(bars)


def errors(content: Content, axes: Any) -> bool:
    """Draw the relative error of each result by data type."""
    records = [r for r in content.get("accuracy", ()) if "relative" in r]
    groups = _by(records, lambda r: f"{r['operation']}, {r['result']}")
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    for i, (name, group) in enumerate(groups.items()):
        places = [dtypes.index(r["dtype"]) + 0.1 * (i - (len(groups) - 1) / 2) for r in group]
        axes.plot(places, [max(r["relative"], 1e-17) for r in group], "o", label=name)
    for place, dtype in enumerate(dtypes):
        axes.plot([place - 0.4, place + 0.4], [EPSILON[dtype]] * 2, color="black", linewidth=0.8)
    axes.set_xticks(range(len(dtypes)), dtypes)
    axes.set_yscale("log")
    axes.set_ylabel("relative error against float64 (line: half a unit in the last place)")
    if records:
        axes.legend(fontsize=7)
    return bool(records)


PLOTS = {"score": scores, "time": times, "speedup": speedups, "error": errors}


def draw(contents: list[Content], folder: Path) -> list[Path]:
    """Draw what each file has figures for; return the pictures' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for content in contents:
        device = content["machine"]["device"].lower().replace(" ", "_")
        for name, plot in PLOTS.items():
            figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
            if plot(content, axes):
                axes.set_title(heading(content).replace("*", "").replace("`", ""), fontsize=7)
                paths.append(folder / f"{device}_{name}.png")
                figure.savefig(paths[-1], dpi=110)
            plt.close(figure)
    return paths
