"""``python -m benchmarks [NAME …]``: measure, print tables, keep the results below ``benchmarks/results``.

``--markdown`` prints the table of what was last measured, for ``docs/performance.md``, and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from benchmarks.harness import RESULTS, load, markdown, save, table

NAMES = (
    "capture",
    "accuracy",
    "memory",
    "peers",
    "hold_10k",
    "whole_answers",
    "dispatch",
    "start",
    "compare_million",
    "sim_ceiling",
    "decode",
    "runtime_engine",
    "runtime_http",
    "gateway_direct",
    "gateway_streams",
    "gateway_queued",
    "gateway_events",
    "gateway_scaled",
    "gateway_collector",
    "gateway_tokens",
    "gateway_start",
)
"""Every benchmark, in the order of the tables in the documentation."""


def main() -> int:
    """Run the benchmarks asked for; return 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each (5)")
    parser.add_argument("--markdown", action="store_true", help="print what was last measured")
    arguments = parser.parse_args()
    names: list[str] = arguments.names or list(NAMES)
    if arguments.markdown:
        print(markdown([load(path) for name in names if (path := RESULTS / f"{name}.json").exists()]))
        return 0
    missed: list[str] = []
    for name in names:
        print(f"{name}: {arguments.rounds} rounds", flush=True)
        result = import_module(f"benchmarks.{name}").measure(arguments.rounds)
        save(result)
        print(table(result), end="\n\n", flush=True)
        missed += [f"{name}: {figure.what}" for figure in result.figures if figure.met is False]
    for line in missed:
        print(f"missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
