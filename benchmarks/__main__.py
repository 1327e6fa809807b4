"""Command line: run, table, plots, compare. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import BRIEF, every_case, matching, quick_cases


def load(path: Path) -> dict[str, Any]:
    """Read a results file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != 1:
        raise SystemExit(f"{path} is not a results file of this version")
    return content


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and show what was measured.")
    commands = parser.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run", help="measure on this machine and write a results file")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="a selection for 100 s (the default)")
    which.add_argument("--all", action="store_true", help="every case")
    which.add_argument("--only", nargs="+", metavar="PATTERN", help="cases by id: wildcards, or a part of it")
    run.add_argument(
        "--seconds", type=float, help="time limit for everything; cases beyond it are left out (quick: 95)"
    )
    run.add_argument("--case-seconds", type=float, help="time limit for timing one case (quick: 0.4, else 2)")
    run.add_argument("--output", type=Path, help="results file; default benchmarks/results/<device>.json")
    run.add_argument(
        "--continue", dest="continues", action="store_true", help="go on with a results file of the same commit and GPU"
    )
    run.add_argument("--commit", help="where the checkout has no git")
    run.add_argument("--list", action="store_true", help="print the ids of the chosen cases and stop")
    table = commands.add_parser("table", help="turn results files into tables")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--write", type=Path, metavar="PAGE", help="put them between the markers of a page")
    table.add_argument("--brief", action="store_true", help="only the cases that a page has room for")
    plots = commands.add_parser("plots", help="draw results files")
    plots.add_argument("results", type=Path, nargs="+")
    plots.add_argument("--output", type=Path, help="folder; default beside the first results file")
    compare = commands.add_parser(
        "compare", help="name what changed beyond the spread; exit code 1 if anything is slower or failed"
    )
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    return parser.parse_args(given)


def measure(options: argparse.Namespace) -> int:
    """Run the chosen cases."""
    quick = not (options.all or options.only)
    cases = every_case() if options.all else matching(options.only) if options.only else quick_cases()
    if not cases:
        print("no case has such an id; --list shows them", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    from benchmarks.report import tables
    from benchmarks.runner import CannotContinueError, Results, run

    limit = options.seconds or (95 if quick else 3600)
    try:
        results = Results(options.output, limit, options.commit, options.continues)
    except CannotContinueError as error:
        print(error, file=sys.stderr)
        return 2
    content = run(results, cases, options.case_seconds or (0.4 if quick else 2.0), lambda text: print(text, flush=True))
    print(f"\n{tables([content])}\n\nwritten to {results.path}")
    return 0 if all(record["status"] != "failed" for record in content["cases"]) else 1


def main(given: list[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = arguments(given)
    if options.what == "run":
        return measure(options)
    if options.what == "table":
        from benchmarks.report import tables, write_between_markers

        contents = [load(path) for path in options.results]
        if options.brief:
            chosen = {case.id for case in matching(BRIEF)}
            contents = [c | {"cases": [record for record in c["cases"] if record["id"] in chosen]} for c in contents]
        text = tables(contents)
        print(text) if options.write is None else write_between_markers(options.write, text)
        return 0
    if options.what == "plots":
        from benchmarks.plots import draw

        for path in draw([load(each) for each in options.results], options.output or options.results[0].parent):
            print(path)
        return 0
    from benchmarks.compare import compare, tell

    changes = compare(load(options.before), load(options.after))
    print(tell(changes))
    return 1 if changes.failed or any(change.slower for change in changes.beyond) else 0


if __name__ == "__main__":
    sys.exit(main())
