"""The mistakes that tools/mutate.py makes, as text to be replaced in files under cuda/."""

from tools.mutants._mutant import Mutant
from tools.mutants.fast import FAST
from tools.mutants.plain import PLAIN

ALL: list[Mutant] = [*FAST, *PLAIN]

__all__ = ["ALL", "Mutant"]
