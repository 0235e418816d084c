"""Runs every target under a coverage-guided fuzzer, one after the other, each in a process of its own.

`make fuzz ARGS='--seconds 600'`, which installs atheris first. An input that breaks a decoder is
kept below `build/fuzz/`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the decoders of both sides.")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (60)")
    parser.add_argument("--target", help="one of them, by default all")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.one:
        _fuzz(options.target, rest)
        return 0
    from tests.fuzz.targets import TARGETS

    names = [options.target] if options.target else list(TARGETS)
    failed = [name for name in names if not _run(name, max(1, options.seconds // len(names)))]
    print(f"{len(names) - len(failed)} of {len(names)} targets without a fault" + "".join(f"\n  {n}" for n in failed))
    return 1 if failed else 0


def _run(name: str, seconds: int) -> bool:
    place = ROOT / "build" / "fuzz" / name
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(_list_seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    argv = [sys.executable, __file__, "--one", "--target", name, f"-max_total_time={seconds}", "-max_len=4096"]
    argv += ["-print_final_stats=1", "-rss_limit_mb=2048", "-timeout=20", f"-artifact_prefix={place}/", str(corpus)]
    done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    said = done.stderr.splitlines()
    runs = next((line.split()[-1] for line in said if "number_of_executed_units" in line), "?")
    cover = next(
        (word for line in reversed(said) if "cov:" in line for word in [line.split("cov:")[1].split()[0]]), "?"
    )
    print(f"{name}: {runs} inputs in {seconds} s, {cover} edges", flush=True)
    if done.returncode != 0:
        print("\n".join(said[-60:]))
    return done.returncode == 0


def _list_seeds(name: str) -> list[bytes]:
    """Something valid to begin with."""
    from guest.agent import frames
    from tests.guest import treeform

    if name.endswith("tree"):
        entries = treeform.encode_entry("", "directory") + treeform.encode_file("a", b"data")
        entries += treeform.encode_entry("l", "symlink", target="a") + treeform.encode_entry(
            "h", "hardlink", target="a"
        )
        single = treeform.encode_file("", b"data") + treeform.encode_end(1, 4)
        return [b"\0" + entries + treeform.encode_end(4, 4), b"\7" + single]
    if "frame" in name:
        frame = frames.build_header(frames.DATA, 1, 5) + b"\xf6\n\x11\x13x"
        every = frame + frames.build_credit(2, 9) + frames.build_reset(3, "why") + frames.build_header(frames.END, 1, 0)
        return [frames.encode_line(frame)[1:-1]] if name == "frame-lines" else [b"\0" + every, b"\3" + every]
    return [b'\0{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"a": [1.5, null, "\\ud800"]}}\n', b"[1]"]


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["guest.agent", "control.agent"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
