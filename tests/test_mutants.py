"""The mistakes of tools/mutants fit the sources as they are; what tests make of them is found by hand."""

import pytest

from gspn2_cupy import _launch
from tools.mutants import ALL
from tools.mutate import SELECTIONS

CUDA = _launch.cuda_sources()


@pytest.mark.parametrize("file", SELECTIONS)
def test_every_mistake_finds_its_place(file):
    text = (CUDA / file).read_text(encoding="utf-8")
    of_file = [mutant for mutant in ALL if mutant.file == file]
    assert not [why for mutant in of_file if (why := mutant.lost_in(text))]
    assert all(mutant.applied(text) != text for mutant in of_file)
    assert len({mutant.name for mutant in of_file}) == len(of_file) > 0


def test_every_source_has_mistakes():
    by_hand = {"primitives.cuh"}  # its PTX is not executed by the emulator
    assert {path.name for path in CUDA.glob("*.cu*")} - by_hand == {mutant.file for mutant in ALL} == set(SELECTIONS)
