"""The command line: ``python -m gspn2_cupy``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import gspn2_cupy

# Each command is the module of its name behind an underscore: add_arguments(parser) and run(arguments) -> exit code.
COMMANDS = {
    "check": "compile and run everything on this machine's GPU and compare with the reference",
    "demo": "colour a grey photograph from a few coloured pixels",
    "info": "show versions, devices, and where CUDA sources and compiled kernels lie",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without a command, print the help."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m gspn2_cupy", description=gspn2_cupy.__doc__.partition("\n")[0])
    parser.add_argument("--version", action="version", version=gspn2_cupy.__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if argv[:1] == [name]:  # only the command that runs is imported
            module = importlib.import_module(f"gspn2_cupy._{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    exit_code: int = arguments.run(arguments)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
