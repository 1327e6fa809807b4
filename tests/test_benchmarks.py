"""The benchmarks count bytes, judge outputs, record, show and compare as they say; no speed is tested."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import cases, check, plans, report, runner, timing
from benchmarks.byte_model import bytes_moved
from benchmarks.cases import Case
from gspn2_cupy import ALL_DIRECTIONS
from gspn2_cupy._arrays import data_type

TINY = {"tiny": ((2, 4, 40, 24), "a test")}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cases, "SHAPES", TINY)
    monkeypatch.setattr(check, "WINDOW_ELEMENTS", 300)  # windows of few lines, some inside


def case(operation="forward", shape="tiny", dtype="float32", weights="shared", direction=None, **more):
    directions = cases.OPERATIONS[operation].directions
    return Case(operation, shape, dtype, weights, direction or directions[0], **more)


# --- what is measured -------------------------------------------------------------------------------------------------

# microseconds at 4.3 TB/s in fp32, worked out by hand in the design study
BY_HAND = [
    ("forward", "batch_1k", "per_channel", 749),
    ("forward", "batch_1k", "shared", 421),
    ("forward", "one_1k", "per_channel", 46.8),
    ("forward", "one_1k", "shared", 26.3),
    ("forward", "one_4k", "shared", 421),
    ("forward", "vit_56", "per_channel", 53.8),
    ("forward", "vit_56", "shared", 27.2),
    ("forward", "vit_14", "shared", 6.7),
    ("forward", "wide_32", "per_channel", 211),
    ("forward", "latent_128", "shared", 23.8),
    ("forward", "two_2k", "shared", 398),
    ("forward", "huge_16k", "per_channel", 5993),
    ("backward", "batch_1k", "per_channel", 1498),
    ("backward", "batch_1k", "shared", 843),
    ("backward", "latent_128", "shared", 47.6),
    ("backward", "huge_16k", "shared", 7491),
    ("unit", "batch_1k", "per_channel", 2247),
    ("unit", "vit_56", "shared", 54.9),
    ("unit", "wide_32", "shared", 211),
    ("unit_u", "latent_128", "shared", 79.5),
    ("unit_u", "huge_16k", "shared", 12985),
]


@pytest.mark.parametrize(("operation", "shape", "weights", "microseconds"), BY_HAND)
def test_bytes_are_those_counted_by_hand(operation, shape, weights, microseconds):
    single, half = (bytes_moved(case(operation, shape, dtype, weights)) for dtype in ("float32", "bfloat16"))
    assert single / 4.3e12 * 1e6 == pytest.approx(microseconds, rel=0.01)
    assert single == 2 * half


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_plans_move_at_least_the_bytes_of_the_model(operation):
    for each in cases.all_cases():
        if each.operation == operation and each.implementation == "ours":
            planned = sum(plan.bytes_moved for plan in plans.plans_of(each))
            assert planned == bytes_moved(each) if operation == "forward" else planned >= bytes_moved(each)


def test_cases_have_ids_of_their_own_and_every_pattern_of_the_quick_selection_finds_some():
    ids = [each.id for each in cases.all_cases()]
    assert len(ids) == len(set(ids))
    assert all(cases.matching([pattern]) for pattern in cases.QUICK)
    assert {each.shape_name for each in cases.quick_cases()} == set(cases.SHAPES)
    assert [each.id for each in cases.matching(["forward-one_1k-float32-shared-left_to_right"])] == [
        "forward-one_1k-float32-shared-left_to_right"
    ]


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_timing_is_median_and_percentiles_whatever_the_order():
    assert timing.Timing.of([3.0, 1, 2, 5, 4, 11, 7, 8, 9, 10, 6], 4, "graph") == timing.Timing(
        6, 2, 10, 11, 4, "graph"
    )


@pytest.mark.parametrize("seconds", [1e-7, 4e-6, 1e-4, 5e-3, 0.3, 9.0])
@pytest.mark.parametrize("limit", [0.3, 2.0])
def test_batches_stay_within_the_limit_and_visit_all_sets_alike(seconds, limit):
    chosen = timing.batches(seconds, limit, sets=7)
    assert 1 <= chosen.samples <= 30
    assert chosen.calls * chosen.samples * seconds <= max(limit, seconds) * 1.01
    assert chosen.calls % 7 == 0 or 7 * seconds > limit / 3


# --- the check --------------------------------------------------------------------------------------------------------


def crop(array, rows, columns):
    return array[..., rows, columns].astype(np.float64)


def computed(each):
    """Random inputs of a case and what it gives."""
    random = np.random.default_rng(0)
    ranges = {"weight": (0, 1 / 3), "lam": (0.5, 1.5), "u": (0.5, 1.5)}
    inputs = {
        name: random.uniform(*ranges.get(name, (-1, 1)), each.shape_of(kind)).astype(data_type(each.dtype).numpy_dtype)
        for name, kind in cases.OPERATIONS[each.operation].inputs.items()
    }
    return inputs, runner.build(each, inputs)()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("weights", cases.WEIGHTS)
@pytest.mark.parametrize(
    ("operation", "direction"),
    [(name, direction) for name, operation in cases.OPERATIONS.items() for direction in operation.directions],
)
@pytest.mark.usefixtures("tiny")
def test_the_check_passes_what_is_right_and_fails_what_is_wrong(operation, direction, weights, dtype):
    each = case(operation, dtype=dtype, weights=weights, direction=direction)
    inputs, outputs = computed(each)
    error = check.check(each, crop, inputs, outputs)
    assert 0 < error.relative < check.TOLERANCES[dtype][0]
    assert error.compared > 300
    for name in outputs:
        wrong = {**outputs, name: outputs[name] * outputs[name].dtype.type(1.05)}
        with pytest.raises(AssertionError, match="is wrong"):
            check.check(each, crop, inputs, wrong)


@pytest.mark.parametrize("direction", ALL_DIRECTIONS)
@pytest.mark.usefixtures("tiny")
def test_the_check_sees_one_line_that_forgot_its_neighbours(direction):
    each = case(direction=direction)
    inputs, outputs = computed(each)
    lines = np.moveaxis(outputs["h"], -1 if direction in cases.AXES[:1] or direction == "right_to_left" else -2, 0)
    lines[[1, -2], ..., 0] += 1  # in the first and the last window
    with pytest.raises(AssertionError, match="is wrong"):
        check.check(each, crop, inputs, outputs)


def test_windows_of_all_channels_cover_a_group():
    for window in check.windows((4, 12, 30, 50), 3, "left_to_right", True, 0):
        assert window.channels.stop - window.channels.start == 4
        assert window.channels.start == 4 * window.group
        assert 0 <= window.first < window.stop <= window.lines == 50


# --- without a GPU, and from the command line -------------------------------------------------------------------------


def test_without_a_gpu_the_reference_is_measured_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "cuda_available", lambda: "no driver")
    monkeypatch.setattr(runner.host, "SAMPLES", 3)
    path = tmp_path / "here.json"
    assert command.main(["run", "--output", str(path), "--commit", "abc"]) == 0
    said = capsys.readouterr().out
    assert "No GPU here (no driver)" in said
    content = command.load(path)
    assert content["machine"]["device"] == "no GPU"
    assert content["commit"] == "abc"
    assert len(content["reference"]) == 3
    assert all("median" in each for each in content["host"])
    assert {each["dtype"] for each in content["accuracy"]} == {"float64", "float32", "float16", "bfloat16"}
    assert not content["cases"]


def test_the_command_lists_cases_and_refuses_unknown_ones(capsys):
    assert command.main(["run", "--only", "forward-vit_56-*-left_to_right", "--list"]) == 0
    assert len(capsys.readouterr().out.split()) == 4
    assert command.main(["run", "--only", "sideways"]) == 2


def made_up(factor=1.0, **machine):
    """A results file of made-up figures."""
    records = []
    for each in (
        *cases.quick_cases(),
        case("forward", "one_1k", direction="right_to_left", implementation="per_line_graph"),
    ):
        seconds = bytes_moved(each) / 3e12 * (1 if each.implementation == "ours" else 7) * factor
        spread = {"median": seconds, "p10": 0.98 * seconds, "p90": 1.03 * seconds, "samples": 30, "calls": 20}
        records.append(
            {"id": each.id, **vars(each), "shape": each.shape, "bytes": bytes_moved(each), "status": "ok"}
            | {"time": {**spread, "how": "graph"}, "copy": spread, "gbps": 3000 / factor, "score": 0.7 / factor}
            | {"error": {"relative": 1e-7}}
        )
    records[0] = {**records[0], "status": "failed", "reason": "AssertionError: h is wrong"}
    facts = {"device": "Made-up GPU", "driver": "1.2", "cuda_runtime": 13000, "cupy": "14.2.0", "numpy": "2.4"}
    return {
        "format": 1,
        "machine": {**facts, **machine},
        "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789ab",
        "command": "python -m benchmarks run",
        "missing": {"triton": "not installed"},
        "copy": {"bytes": 4 << 30, "gbps": 4270.0, "median": 1e-3},
        "cases": records,
        "host": [{"name": "line_scan", "median": 2e-5, "p10": 1.9e-5, "p90": 2.2e-5}],
        "first_calls": [{"name": "first call, cold", "seconds": 0.81}],
        "accuracy": [
            {"operation": "forward", "result": "h", "dtype": dtype, "relative": error}
            for dtype, error in (("float64", 1e-16), ("float32", 1e-7), ("bfloat16", 2e-3))
        ],
    }


def write(path: Path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_tables_hold_the_figures_and_name_what_is_missing(tmp_path, capsys):
    results = write(tmp_path / "a.json", made_up())
    assert command.main(["table", results]) == 0
    text = capsys.readouterr().out
    for expected in (
        "**Made-up GPU**, driver 1.2, CUDA 13.0, CuPy 14.2.0; 2026-01-02, commit 0123456789ab",
        "↓ 1.07 ms, **0.70**",
        "| per line graph | one scan, forward | (1, 8, 1024, 1024) | fp32 PC → |",
        "| 7.0× |",
        "| line_scan | 20.0 µs | 19.0 µs – 22.0 µs |",
        "- triton is missing",
        "- Failed, AssertionError: h is wrong: forward-batch_1k-float32-per_channel-left_to_right.",
        "A copy of 4 GiB ran at 4270 GB/s",
    ):
        assert expected in text
    assert "right_to_left" not in text  # no time of ours beside that baseline

    content = made_up()
    content["cases"].reverse()
    write(tmp_path / "a.json", content)
    assert command.main(["table", results]) == 0
    assert capsys.readouterr().out == text  # the order in which cases were run doesn't show

    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nstale figures\n{report.END}\nafter\n")
    assert command.main(["table", results, "--write", str(page)]) == 0
    assert command.main(["table", results, "--write", str(page)]) == 0
    written = page.read_text()
    assert written.startswith(f"before\n{report.BEGIN}\n\n**Made-up GPU**")
    assert written.endswith(f"{report.END}\nafter\n")
    assert "stale" not in written
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="must have"):
        command.main(["table", results, "--write", str(page)])


@pytest.mark.parametrize("spread", [0.001, 0.2])
def test_comparison_names_what_is_beyond_the_spread(tmp_path, capsys, spread):
    before, after = made_up(), made_up()
    slower, faster, same, lost, failed = after["cases"][1:6]
    for content in (before, after):
        for record in content["cases"]:
            timing = record["time"]
            timing["p10"], timing["p90"] = (timing["median"] * (1 + sign * spread) for sign in (-1, 1))
    for record, factor in ((slower, 1.1), (faster, 0.8), (same, 1.01)):
        record["time"] = {**record["time"], **{k: record["time"][k] * factor for k in ("median", "p10", "p90")}}
    lost["status"] = "left out"
    files = [write(tmp_path / f"{name}.json", content) for name, content in (("a", before), ("b", after))]
    code = command.main(["compare", *files])
    lines = capsys.readouterr().out.splitlines()
    assert f"no longer measured: {lost['id']}" in lines
    if spread < 0.1:
        assert code == 1
        assert lines[0].startswith(f"slower by 10.0%: {slower['id']}: ")
        assert lines[1].startswith(f"faster by 20.0%: {faster['id']}: ")
        assert not any(same["id"] in line for line in lines)
    else:
        assert code == 0
        assert not any(word in line for line in lines for word in ("slower", "faster"))
    failed["status"] = "failed"
    write(tmp_path / "b.json", after)
    assert command.main(["compare", *files]) == 1
    assert f"failed: {failed['id']}" in capsys.readouterr().out.splitlines()


def test_a_single_time_is_not_judged(tmp_path, capsys):
    before, after = made_up(), made_up()
    record = after["cases"][1]
    record["time"] = {**record["time"], **{k: record["time"][k] * 2 for k in ("median", "p10", "p90")}, "samples": 1}
    files = [write(tmp_path / f"{name}.json", content) for name, content in (("a", before), ("b", after))]
    assert command.main(["compare", *files]) == 0
    said = capsys.readouterr().out
    assert record["id"] not in said
    assert "1 of them were timed only once, and are not judged" in said


def test_comparison_of_different_machines_says_so(tmp_path, capsys):
    files = [write(tmp_path / f"{name}.json", made_up(device=name)) for name in ("a", "b")]
    assert command.main(["compare", *files]) == 0
    assert "Different machines" in capsys.readouterr().out


def test_plots_are_drawn_from_what_a_file_has(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    content = made_up()
    assert command.main(["plots", write(tmp_path / "a.json", content), "--output", str(tmp_path / "plots")]) == 0
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {f"made-up_gpu_{name}.png" for name in ("score", "time", "speedup", "error")}
    assert str(tmp_path / "plots" / "made-up_gpu_time.png") in capsys.readouterr().out

    content["cases"] = []
    assert command.main(["plots", write(tmp_path / "b.json", content), "--output", str(tmp_path / "few")]) == 0
    assert [path.name for path in (tmp_path / "few").iterdir()] == ["made-up_gpu_error.png"]


def test_a_file_of_another_version_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="not a results file"):
        command.main(["table", write(tmp_path / "a.json", {"format": 0})])
