"""From results files to Markdown tables. Every figure comes from the files; what is missing is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import ABBREVIATIONS, DTYPES, OPERATIONS, SHAPES, WEIGHTS, all_cases

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
ARROWS = {"left_to_right": "→", "right_to_left": "←", "top_to_bottom": "↓", "bottom_to_top": "↑", "four": "✢"}
Content = dict[str, Any]
ROTATED = 4  # times L2: what the buffers of a case hold together, where memory allows


def heading(content: Content) -> str:
    """Return where, when and how."""
    m = content["machine"]
    if "cuda_runtime" in m:
        cuda = f"{m['cuda_runtime'] // 1000}.{m['cuda_runtime'] % 1000 // 10}"
        where = f"**{m['device']}**, driver {m['driver']}, CUDA {cuda}, CuPy {m['cupy']}"
    else:
        where = f"**{m['device']}**: {m['cores']} cores, {m['platform']}, NumPy {m['numpy']}"
    commands = ", then ".join(f"`{command}`" for command in (content["command"], *content.get("continued", ())))
    return f"{where}; {content['date'][:10]}, commit {content['commit']}, {commands}"


def microseconds(seconds: float) -> str:
    """Return a time with three digits and its unit."""
    for size, unit in ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")):
        value = seconds / size
        if value < 999.5 or unit == "s":
            digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    raise AssertionError


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ok(content: Content) -> list[dict[str, Any]]:
    return [record for record in content["cases"] if record["status"] == "ok"]


def operations_table(content: Content) -> str:
    """Return time and score of our own implementation: a row per shape, a column per operation and kind of arrays."""
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for r in _ok(content):
        if r["implementation"] == "ours":
            found.setdefault((r["operation"], r["dtype"], r["weights"], r["shape_name"]), []).append(r)
    kinds = [
        (o, d, w) for o in OPERATIONS for d in DTYPES for w in WEIGHTS if any((o, d, w) == key[:3] for key in found)
    ]
    if not kinds:
        return ""
    header = ["shape", *(f"{OPERATIONS[o].title}, {ABBREVIATIONS[d]} {ABBREVIATIONS[w]}" for o, d, w in kinds)]
    rows = []
    for name, (shape, whom) in SHAPES.items():
        cells = [_cell(found.get((*kind, name), [])) for kind in kinds]
        if any(cells):
            rows.append([f"({', '.join(map(str, shape))}), {whom}", *(cell or "–" for cell in cells)])
    return table(header, rows)


def _cell(records: list[dict[str, Any]]) -> str:
    order = list(ARROWS)
    records = sorted(records, key=lambda r: order.index(r["direction"]))
    return "<br>".join(
        f"{ARROWS[r['direction']]} {microseconds(r['time']['median'])}, **{r['score']:.2f}**" for r in records
    )


def baselines_table(content: Content) -> str:
    """Return every baseline beside our own time for the same."""
    ours = {r["id"]: r for r in _ok(content) if r["implementation"] == "ours"}
    rows, order = [], {case.id: place for place, case in enumerate(all_cases())}  # whatever order they were run in
    for r in sorted(_ok(content), key=lambda r: order.get(r["id"], len(order))):
        own = ours.get(r["id"].removesuffix(f"-{r['implementation']}"))
        if r["implementation"] == "ours" or own is None:
            continue
        kind = f"{ABBREVIATIONS[r['dtype']]} {ABBREVIATIONS[r['weights']]} {ARROWS[r['direction']]}"
        times = (r["time"]["median"], own["time"]["median"])
        shape = f"({', '.join(map(str, r['shape']))})"
        name = r["implementation"].replace("_", " ")
        rows.append(
            [
                name,
                OPERATIONS[r["operation"]].title,
                shape,
                kind,
                *map(microseconds, times),
                f"{times[0] / times[1]:.1f}×",
            ]
        )
    header = ["instead of ours", "operation", "shape", "arrays", "it takes", "ours takes", "ours is faster by"]
    return table(header, rows) if rows else ""


def host_table(content: Content) -> str:
    """Return what the host pays, and the NumPy reference."""
    timed = [r for r in (*content.get("host", ()), *content.get("reference", ())) if "median" in r]
    rows = [
        [r["name"], microseconds(r["median"]), f"{microseconds(r['p10'])} – {microseconds(r['p90'])}"] for r in timed
    ]
    rows += [[r["name"], microseconds(r["seconds"]), "once"] for r in content.get("first_calls", ()) if "seconds" in r]
    return table(["on the host", "median", "10th – 90th percentile"], rows) if rows else ""


def accuracy_table(content: Content) -> str:
    """Return relative errors against float64 by data type."""
    records = [r for r in content.get("accuracy", ()) if "relative" in r]
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    rows = []
    for operation, result in dict.fromkeys((r["operation"], r["result"]) for r in records):
        cells = {
            r["dtype"]: f"{r['relative']:.1e}" for r in records if (r["operation"], r["result"]) == (operation, result)
        }
        rows.append([f"{operation}, {result}", *(cells.get(dtype, "–") for dtype in dtypes)])
    return table(["relative error", *dtypes], rows) if rows else ""


def remarks(content: Content) -> str:
    """Name what is not in the tables."""
    notes = [content["note"]] if "note" in content else []
    if "copy" in content:
        notes.append(f"A copy of 4 GiB ran at {content['copy']['gbps']:.0f} GB/s, bytes read and written.")
    notes += [f"{package} is missing ({reason})." for package, reason in content.get("missing", {}).items()]
    short = [r["id"] for r in _ok(content) if r.get("times_l2", ROTATED) < ROTATED]
    if short:
        notes.append(
            f"Memory for buffers of less than {ROTATED} times L2, so part of them may be in it: {', '.join(short)}."
        )
    reasons: dict[str, list[str]] = {}
    for r in content["cases"]:
        if r["status"] != "ok":
            reasons.setdefault(f"{r['status']}, {r['reason']}", []).append(r["id"])
    for reason, ids in reasons.items():
        shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
        notes.append(f"{reason[0].upper()}{reason[1:160]}: {shown}.")
    if content["machine"]["device"] == "no GPU":
        notes.append("No GPU: no kernel was measured.")
    return "\n".join(f"- {note}" for note in notes)


def tables(contents: list[Content]) -> str:
    """Return all tables of all files."""
    parts = []
    for content in contents:
        shown = (operations_table(content), baselines_table(content), host_table(content), accuracy_table(content))
        parts += [heading(content), *(part for part in (*shown, remarks(content)) if part)]
    return "\n\n".join(parts)


def write_between_markers(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    whole = page.read_text(encoding="utf-8")
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise SystemExit(f"{page} must have {BEGIN} and then {END}, once each")
    before, after = whole.split(BEGIN)[0], whole.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
