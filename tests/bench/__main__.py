"""The command line of the benchmarks: `make bench ARGS='--only boot --runs 3'`."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from control.errors import EXIT_INTERRUPTED, ControlError
from control.launch.render import render_error
from control.paths import BUILD, ROOT
from tests.bench.figures import Figure
from tests.bench.machine import read_load, read_machine
from tests.bench.registry import BENCHMARKS, Settings
from tests.bench.report import build_markdown, build_results, replace_table, write_json

MODULES = (
    "boot",
    "start",
    "memory",
    "console",
    "session",
    "lua",
    "clones",
    "plugin",
    "peers",
    "web",
    "messages",
    "ping",
    "agent",
    "fleet",
    "stability",
)
RESULTS = BUILD / "bench" / "results.json"
TABLE = BUILD / "bench" / "results.md"
FAILURES = BUILD / "bench" / "failures"
PAGE = ROOT / "docs" / "performance.md"


def main(arguments: list[str]) -> int:
    for module in MODULES:
        importlib.import_module(f"tests.bench.{module}")
    options = _build_parser().parse_args(arguments)
    if options.list:
        for entry in BENCHMARKS.values():
            print(f"{entry.name:<12}{entry.summary}")
        return 0
    os.environ["NO_COLOR"] = "1"  # what is shown is compared byte for byte
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # elsewhere Python compiles each module once, and not every time
    # Short, because an AF_UNIX address holds 107 bytes; private, because sockets lie in it.
    directory = Path(tempfile.mkdtemp(prefix="ub-", dir="/tmp"))
    settings = Settings(
        runs=options.runs or (2 if options.quick else 7),
        boots=options.boots or (4 if options.quick else 20),
        quick=options.quick,
        accelerator=options.accel,
        directory=directory,
        keep=FAILURES,
        say=_say,
    )
    machine = {**read_machine("qemu-system-x86_64"), "accelerator": settings.accelerator}
    try:
        results = {name: BENCHMARKS[name].run(settings) for name in options.only or MODULES}
    except ControlError as error:
        _say(render_error(error, colour=False))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    finally:
        shutil.rmtree(directory)
    machine["load_after"] = read_load()
    command = f"make bench{f' ARGS={shlex.quote(shlex.join(arguments))}' if arguments else ''}"
    document = build_results(machine, results, command)
    for path in (RESULTS, *([options.json] if options.json else [])):
        write_json(path, document)
    table = build_markdown(machine, results, command)
    TABLE.write_text(table, encoding="utf-8")
    if options.update_docs:
        replace_table(PAGE, table)
    print(table)
    return _judge(results)


def _judge(results: dict[str, list[Figure]]) -> int:
    missed = [
        f"{name}: {figure.name}"
        for name, figures in results.items()
        for figure in figures
        for target in figure.targets
        if not figure.is_met(target)
    ]
    for line in missed:
        _say(f"missed: {line}")
    return 1 if missed else 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure speed and memory beside a peer. Exit code 1 when a target is missed.",
    )
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        choices=list(BENCHMARKS),
        help="run only this (more than once: these)",
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    parser.add_argument("--quick", action="store_true", help="less of everything: shows that the harness works")
    parser.add_argument("--runs", metavar="N", type=_count, help="pairs of each comparison (default: 7)")
    parser.add_argument("--boots", metavar="N", type=_count, help="boots of the stability benchmark (default: 20)")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg", help="what guests run on (default: tcg)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results here too")
    parser.add_argument("--update-docs", action="store_true", help="put the table into docs/performance.md")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
