"""Every fault that the emulator promises to find is planted in a small kernel and must be found."""

import re

import emulator
import numpy as np
import pytest
from emulator import Emulator, EmulatorFault
from emulator.planted.cases import CASES, FOLDER, copy, pass_along, scan

RACE, BOUNDS, COPY = emulator.DataRace, emulator.OutOfBounds, emulator.AsyncCopyFault
SYNCHRONISATION, MISALIGNED = emulator.BadSynchronisation, emulator.Misaligned

# (case, bug): what the detector raises; and the schedules that show the bug without the detector, by a wrong result or
# a fault. Random ones must do so for at least 95 of 100 seeds.
PLANTED = {
    ("scan", "no_barrier"): (RACE, ("thread", "reverse", "random", "priority")),
    ("scan", "single_buffer"): (RACE, ("reverse",)),
    ("scan", "other_barrier"): (SYNCHRONISATION, ("thread", "reverse", "random", "priority")),
    ("scan", "no_first_line"): (emulator.UninitialisedRead, ("thread", "random")),
    ("scan", "reads_past_end"): (BOUNDS, ()),
    ("scan", "static_overflow"): (BOUNDS, ()),
    ("block_sums", "no_barrier"): (RACE, ("thread", "random")),
    ("block_sums", "plain_add"): (RACE, ()),
    ("warp_sums", "no_syncwarp"): (RACE, ("thread", "random")),
    ("warp_sums", "wrong_mask"): (SYNCHRONISATION, ("thread", "random")),
    ("warp_sums", "lane_missing"): (SYNCHRONISATION, ("thread", "random")),
    ("warp_sums", "divergent_barrier"): (emulator.Deadlock, ("thread", "random")),
    ("copy", "misaligned_load"): (MISALIGNED, ("thread", "random")),
    ("copy", "misaligned_store"): (MISALIGNED, ("thread", "random")),
    ("copy", "store_past_end"): (BOUNDS, ("thread", "random")),
    ("copy", "writes_input"): (BOUNDS, ()),
    ("copy", "null_pointer"): (BOUNDS, ("thread", "random")),
    ("reverse_tiles", "no_wait"): (COPY, ("thread", "random")),
    ("reverse_tiles", "waits_for_less"): (COPY, ("thread", "random")),
    ("reverse_tiles", "no_barrier"): (RACE, ("thread", "random")),
    ("reverse_tiles", "overwrites_tile"): ((RACE, COPY), ("thread", "random")),
    ("reverse_tiles", "never_waited"): (COPY, ("thread", "random")),
    ("reverse_tiles", "copied_twice"): (COPY, ()),
    ("reverse_tiles", "misaligned"): (MISALIGNED, ("thread", "random")),
    ("reverse_tiles", "reads_past_end"): (BOUNDS, ()),
    ("pass_along", "wrong_tag"): (emulator.Deadlock, ("thread", "random")),
    ("pass_along", "plain_data"): (RACE, ()),
    ("cluster_sums", "no_barrier"): ((RACE, emulator.UninitialisedRead), ("thread", "random", "priority")),
    ("cluster_sums", "leaves_early"): (BOUNDS, ()),
    ("cluster_sums", "plain_word"): (RACE, ()),
    ("cluster_sums", "outside"): (BOUNDS, ("thread", "random")),
    ("swap_in_groups", "no_meeting"): ((RACE, emulator.UninitialisedRead), ("thread", "random")),
    ("swap_in_groups", "other_group"): ((RACE, emulator.UninitialisedRead), ()),
    ("swap_in_groups", "one_buffer"): (RACE, ()),
    ("swap_in_groups", "too_few"): ((SYNCHRONISATION, RACE, emulator.UninitialisedRead), ("thread", "random")),
    ("swap_in_groups", "left_behind"): (emulator.Deadlock, ("thread", "random")),
}
SEEDS = range(100)


@pytest.fixture(autouse=True)
def _emulator():
    emulator.require()


@pytest.mark.parametrize(("case", "bug"), PLANTED)
def test_detector_finds(case, bug):
    expected, _ = PLANTED[case, bug]
    for schedule, seeds in (("thread", [0]), ("reverse", [0]), ("random", SEEDS), ("priority", range(20))):
        found = 0
        for seed in seeds:
            try:
                CASES[case](Emulator(FOLDER, seed=seed, schedule=schedule), bug)
            except expected as fault:
                found += 1
                check_text(fault, case, f"seed={seed}, schedule={schedule!r}")
        assert found >= 0.95 * len(seeds), f"{schedule}: {found} of {len(seeds)} seeds"


def check_text(fault, case, settings):
    """It names the kernel, the settings that reproduce it, a line, and a thread: both threads of a race."""
    text = str(fault)
    assert case in text
    assert settings in text
    threads = re.findall(r"thread \(\d+,0,0\) of block \(\d,0,0\)", text)
    lines = re.findall(r"planted/\w+\.cu:\d+", text)
    races = isinstance(fault, RACE)
    assert len(lines) >= 1 + races, text
    assert len(threads) >= 1 + races, text
    if races:
        assert threads[0] != threads[1]


@pytest.mark.parametrize(
    ("case", "bug", "schedule"), [(*key, schedule) for key, (_, found) in PLANTED.items() for schedule in found]
)
def test_plain_run_finds(case, bug, schedule):
    seeds = SEEDS if schedule in ("random", "priority") else [0]
    found = 0
    for seed in seeds:
        try:
            actual, expected = CASES[case](Emulator(FOLDER, seed=seed, schedule=schedule, detect=False), bug)
            found += not np.allclose(actual, expected)  # NaN is close to nothing
        except EmulatorFault:
            found += 1
    assert found >= 0.95 * len(seeds), f"{found} of {len(seeds)} seeds"


# What only an output comparison or nothing shows without a detector: known, so that nobody relies on plain runs.
@pytest.mark.parametrize(("case", "bug"), [("block_sums", "plain_add"), ("pass_along", "plain_data")])
def test_plain_run_misses(case, bug):
    actual, expected = CASES[case](Emulator(FOLDER, detect=False), bug)
    assert np.allclose(actual, expected)


@pytest.mark.parametrize("time", ["wait", "issue", "random"])
def test_a_missing_wait_is_found_whenever_the_bytes_move(time):
    for bug in ("no_wait", "waits_for_less"):
        for seed in range(20):
            with pytest.raises(COPY):
                CASES["reverse_tiles"](Emulator(FOLDER, seed=seed, async_copies=time), bug)


def test_too_little_shared_memory():
    with pytest.raises(BOUNDS, match="of dynamic shared memory"):
        scan(Emulator(FOLDER), shared_bytes=2 * 48 * 4 - 4)


def test_uninitialised_local_is_absurd():
    actual, _ = CASES["warp_sums"](Emulator(FOLDER), "uninitialised_local")
    assert not (np.abs(actual) < 1e6).any()


def test_deadlock_names_every_kind_of_wait():
    with pytest.raises(emulator.Deadlock) as caught:
        CASES["warp_sums"](Emulator(FOLDER), "divergent_barrier")
    assert re.search(r"thread \(0,0,0\) of block \(0,0,0\) waits in __syncthreads at .*sums\.cu:\d+", str(caught.value))
    assert re.search(r"thread \(16,0,0\) of block \(0,0,0\) waits in __shfl_xor_sync at .*sums\.cu", str(caught.value))


def test_blocks_that_wait_need_a_cooperative_launch():
    with pytest.raises(emulator.Deadlock, match="waits in await_tag"):
        pass_along(Emulator(FOLDER, schedule="reverse"), cooperative=False)


def test_a_seed_reproduces_its_run():
    texts = []
    for seed in (*range(20), *range(20)):
        with pytest.raises(RACE) as caught:
            scan(Emulator(FOLDER, seed=seed), "no_barrier")
        texts.append(str(caught.value))
    assert texts[:20] == texts[20:]
    assert len({text.partition("\n")[2] for text in texts}) > 5  # and other seeds give other runs


def test_after_a_fault_all_is_as_before():
    device = Emulator(FOLDER)
    for bug in ("store_past_end", "none", "null_pointer", "none"):
        if bug == "none":
            assert np.array_equal(*copy(device, bug))
        else:
            with pytest.raises(BOUNDS):
                copy(device, bug)


# By AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.
SANITIZED = {
    "scan/none": "right",
    "block_sums/none": "right",
    "warp_sums/none": "right",
    "reverse_tiles/none": "right",
    "pass_along/none": "right",
    "cluster_sums/none": "right",
    "scan/reads_past_end": "AddressFault: scan.cu",
    "scan/static_overflow": "UndefinedBehaviour: scan.cu",
    "copy/misaligned_load": "UndefinedBehaviour: vectors.cu",
    "copy/misaligned_store": "UndefinedBehaviour: vectors.cu",
    "copy/store_past_end": "AddressFault: vectors.cu",
    "copy/index_outside_array": "UndefinedBehaviour: vectors.cu",
    "copy/stack_overflow_by_one": "AddressFault: vectors.cu",
    "copy/signed_overflow": "UndefinedBehaviour: vectors.cu",
    "copy/null_pointer": "OutOfBounds: vectors.cu",
    "warp_sums/divergent_barrier": "Deadlock: sums.cu",
    "warp_sums/uninitialised_local": "wrong",
    "copy/none": "right",
    "left_to_right/float32/9x13": "right",
    "bottom_to_top/float16/9x13": "right",
    "right_to_left/float16/16x24": "right",  # whole vectors of 16 bytes: the tile kernel
}


def test_sanitizers_find():
    done = emulator.run_sanitized(["-m", "emulator.planted.report", "--sanitize", *SANITIZED])
    outcomes = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, done.stderr
    for case, expected in SANITIZED.items():
        assert outcomes[case].startswith(expected), f"{case}: {outcomes[case]}"
