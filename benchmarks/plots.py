"""From results files to pictures: scores, time against the image's side, speed-up, errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.cases import ABBREVIATIONS, BRIEF, OPERATIONS, SHAPES, matching
from benchmarks.report import ARROWS, heading

Content = dict[str, Any]
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def _ours(content: Content) -> list[dict[str, Any]]:
    return [r for r in content["cases"] if r["status"] == "ok" and r["implementation"] == "ours"]


def _for_a_page(content: Content) -> Content:
    """Keep the cases that a picture has room for."""
    room = {case.id for case in matching(BRIEF)}
    return content | {"cases": [r for r in content["cases"] if r["id"] in room]}


def _legend_beside(axes: Any) -> None:
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


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
    axes.set_ylabel("score: time of an equal-bytes copy / time")
    if groups:
        _legend_beside(axes)
    return bool(groups)


def times(content: Content, axes: Any) -> bool:
    """Draw time per pixel against the image's side, with the floors that memory sets."""
    bandwidth = content.get("copy", {}).get("gbps")
    forward = [r for r in _ours(content) if r["operation"] == "forward"]
    names: dict[float, list[str]] = {}
    floors: dict[str, list[tuple[float, float]]] = {}
    for i, (kind, records) in enumerate(_by(forward, _kind).items()):
        sides = [math.sqrt(r["shape"][2] * r["shape"][3]) for r in records]
        pixels = [math.prod(r["shape"]) for r in records]
        median = [r["time"]["median"] / n * 1e12 for r, n in zip(records, pixels, strict=True)]
        axes.plot(sides, median, "osD^v<>P"[i % 8], color=f"C{i}", alpha=0.8, label=kind)
        for r, side, n in zip(records, sides, pixels, strict=True):
            if r["shape_name"] not in names.setdefault(side, []):
                names[side].append(r["shape_name"])
            if bandwidth:
                arrays = f"{ABBREVIATIONS[r['dtype']]} {ABBREVIATIONS[r['weights']]}"
                floors.setdefault(arrays, []).append((side, r["bytes"] / bandwidth / n * 1e3))
    for style, (arrays, points) in zip(itertools.cycle(("--", ":", "-.")), floors.items()):
        label = f"floor, {arrays}: bytes / bandwidth of the large copy"
        axes.plot(*zip(*sorted(set(points)), strict=True), style, color="black", linewidth=0.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(names), [f"{side:g}\n" + "\n".join(names[side]) for side in names], fontsize=7)
    axes.set_xlabel("side of the image, pixels, and the name of the shape")
    axes.set_ylabel("time / (B·C·H·W), ps per pixel of a channel")
    if forward:
        axes.grid(axis="y", linewidth=0.3)
        _legend_beside(axes)
    return bool(forward)


def speedups(content: Content, axes: Any) -> bool:
    """Draw how much longer each baseline takes than ours."""
    ours = {r["id"]: r for r in _ours(content)}
    bars = []
    for r in content["cases"]:
        own = ours.get(r["id"].removesuffix(f"-{r['implementation']}"))
        if r["status"] == "ok" and r["implementation"] != "ours" and own is not None:
            name = f"{r['implementation'].replace('_', ' ')}, {r['shape_name']}: {_kind(r)}"
            bars.append((name, r["time"]["median"] / own["time"]["median"]))
    for place, (_, ratio) in enumerate(bars):
        axes.barh(place, ratio - 1, left=1, color="C0" if ratio >= 1 else "C3")
        side = "left" if ratio >= 1 else "right"
        digits = f"{ratio:.3g}" if ratio < 1000 else f"{ratio:.0f}"
        axes.text(ratio, place, f" {digits}× ", va="center", ha=side, fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("time of the baseline / time of ours (right of the line: ours is faster)")
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
            figure, axes = plt.subplots(figsize=(14, 6), layout="constrained")
            if plot(_for_a_page(content), axes):
                figure.suptitle(fill(heading(content).replace("**", "").replace("`", ""), 180), fontsize=7)
                paths.append(folder / f"{device}_{name}.png")
                figure.savefig(paths[-1], dpi=110)
            plt.close(figure)
    return paths
