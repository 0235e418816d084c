"""What a user may get wrong, and what they are shown: files, options, patterns, messages and errors (floor 5)."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import re
import socket
import subprocess
import sys
import termios
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.console.escape import ESCAPE_KEY
from control.errors import EXIT_USAGE, BootError, ConfigError, ControlError, HostError, ImageError, LaunchError
from control.launch.options import LaunchOptions, build_parser, read_options
from control.launch.prepare import prepare
from control.launch.render import render_error, render_message
from control.launch.session import View, _Watcher
from control.launch.terminal import open_terminal, read_ready
from control.launch.until import LINE_LIMIT_BYTES, UntilMatcher
from control.paths import ROOT, InstanceFiles, open_instance_files
from control.spec.vm_spec import DirectBoot, Disk, DiskBoot, IsoBoot, VMSpec
from control.units import GIB, MIB, TIB
from control.vm import media as check
from control.wire import build_message

ISO = b"\0" * 32769 + b"CD001" + b"\0" * 4096
BZIMAGE = b"\0" * 0x202 + b"HdrS" + b"\0" * 1024
ELF = b"\x7fELF" + b"\0" * 1024
QCOW2 = b"QFI\xfb\0\0\0\3" + b"\0" * 512
RAW = b"\0" * 1024
CHECKS: dict[str, Any] = {
    "iso": (check.check_iso, ISO),
    "kernel": (check.check_kernel, BZIMAGE),
    "initrd": (check.check_initrd, RAW),
    "disk": (check.check_disk, QCOW2),
}
NAMES = ["plain", "with blank", "comma,s", "quote'\"s", "naïve-日本", "$HOME;`x`", "-dash", "new\nline", "a" * 200]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", CHECKS)
def test_a_good_file_passes_whatever_its_name(tmp_path: Path, kind: str, name: str) -> None:
    function, content = CHECKS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    assert function(path) == ("qcow2" if kind == "disk" else path)


def test_other_good_files(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(ELF)
    assert check.check_kernel(path) == path
    path = tmp_path / "disk.img"
    path.write_bytes(RAW)
    assert check.check_disk(path) == "raw"
    assert check.check_share(tmp_path) == tmp_path


def refused(function: Any, path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        function(path)
    error = caught.value
    assert error.hint
    assert "\n" not in render_error(error, colour=False).partition("\n")[0]
    return error


@pytest.mark.parametrize("kind", CHECKS)
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    function, _ = CHECKS[kind]
    assert "does not exist" in str(refused(function, tmp_path / "missing"))
    assert "is a directory" in str(refused(function, tmp_path))
    (tmp_path / "empty").touch()
    assert "is empty" in str(refused(function, tmp_path / "empty"))
    os.mkfifo(tmp_path / "fifo")
    assert "is not a file" in str(refused(function, tmp_path / "fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "is not a file" in str(refused(function, tmp_path / "s"))
    assert "is not a file" in str(refused(function, Path("/dev/null")))
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in str(refused(function, tmp_path / "dangling"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(function, tmp_path / "loop")
    refused(function, tmp_path / "empty" / "below")
    refused(function, tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("kind", "content"),
    [("iso", RAW), ("iso", QCOW2), ("iso", b"x"), ("kernel", RAW), ("kernel", ISO), ("kernel", b"#!/bin/sh\n")],
)
def test_files_that_are_not_what_they_are_taken_for(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    refused(CHECKS[kind][0], path)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.vmdk", b"KDMV" + RAW, "vmdk"),
        ("a.vmdk", b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        ("a.img", b"vhdxfile" + RAW, "vhdx"),
        ("a.vdi", b"<<< Oracle VM VirtualBox Disk Image >>>\n" + RAW, "vdi"),
        ("a.vhd", b"conectix" + RAW, "vpc"),
        ("a.qcow2", RAW, "not a qcow2"),
        ("a.iso", ISO, "ISO="),
    ],
)
def test_disks_a_vm_should_not_write_to(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refused(check.check_disk, path)
    assert word in f"{error} {error.hint}"
    assert path.read_bytes() == content


def test_a_share_that_is_none(tmp_path: Path) -> None:
    refused(check.check_share, tmp_path / "missing")
    (tmp_path / "file").touch()
    refused(check.check_share, tmp_path / "file")


UNREADABLE = """
import sys
from pathlib import Path
from control.errors import ImageError
from control.vm import media as check
for function, name in ((check.check_iso, "iso"), (check.check_kernel, "kernel"), (check.check_disk, "disk"),
                       (check.check_disk, "read-only"), (check.check_share, "share"),
                       (check.check_share, "closed/share")):
    try:
        function(Path(sys.argv[1]) / name)
    except ImageError as error:
        print(name, "|", error, "|", error.hint)
"""


def test_what_may_not_be_read_or_written_is_said(workdir: Path) -> None:
    """As an ordinary user, since root reads and writes anything."""
    for name in ("iso", "kernel", "disk", "read-only"):
        (workdir / name).write_bytes(RAW)
        (workdir / name).chmod(0o000)
    (workdir / "read-only").chmod(0o444)
    (workdir / "share").mkdir(mode=0o500)
    (workdir / "closed" / "share").mkdir(parents=True)
    (workdir / "closed").chmod(0o000)
    workdir.chmod(0o755)
    argv = [sys.executable, "-c", UNREADABLE, str(workdir)]
    if os.getuid() == 0:
        for path in (workdir, *workdir.iterdir()):
            os.chown(path, 65534, 65534)
        # Root without its capabilities is an ordinary user, one who can still read the interpreter.
        argv = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=30, check=False)
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [
        "iso",
        "kernel",
        "disk",
        "read-only",
        "share",
        "closed/share",
    ], done.stderr
    assert all(line.split(" | ")[2] for line in lines)
    assert "Permission denied" in lines[0]
    assert "cannot be written" in lines[3]


# -- options -----------------------------------------------------------------------------------------------------------


def read(*arguments: str) -> LaunchOptions:
    return read_options(build_parser("launcher", "x").parse_args(arguments))


def test_options_and_their_defaults() -> None:
    defaults = read()
    assert (defaults.memory_bytes, defaults.cpu_count, defaults.accel, defaults.until) == (GIB, 2, "auto", None)
    options = read("--iso", "a,b c.iso", "--until", "ready", "--timeout", "1.5", "--memory", "512M", "--cpus", "4",
                   "--qemu-arg=-snapshot", "--qemu-arg=x")  # fmt: skip
    assert options.iso == Path("a,b c.iso").absolute()
    assert options.until is not None
    assert options.until.search(b"x ready y")
    assert (options.timeout_s, options.memory_bytes, options.cpu_count) == (1.5, 512 * MIB, 4)
    assert options.qemu_args == ("-snapshot", "x")


def test_empty_values_count_as_not_given() -> None:
    options = read("--iso=", "--disk=", "--until=", "--timeout=", "--name=")
    assert (options.iso, options.disk, options.until, options.timeout_s, options.name) == (None, None, None, None, "")


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--timeout", "soon"], "TIMEOUT"),
        (["--timeout", "0"], "TIMEOUT"),
        (["--timeout", "-1"], "TIMEOUT"),
        (["--timeout", "nan"], "TIMEOUT"),
        (["--timeout", "inf"], "TIMEOUT"),
        (["--until", "("], "UNTIL"),
        (["--until", "a{99999999999}"], "UNTIL"),
        (["--until", "(" * 5000 + ")" * 5000], "UNTIL"),
        (["--until", "\\u1234"], "UNTIL"),
    ],
)
def test_values_that_cannot_be_read(arguments: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert (caught.value.key, caught.value.exit_code) == (key, EXIT_USAGE)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_bytes_that_are_no_utf8_can_be_waited_for() -> None:
    options = read("--until", os.fsdecode(b"caf\xe9"))
    assert options.until is not None
    assert options.until.search(b"a caf\xe9 b")


def test_a_home_of_nobody_is_an_ordinary_name() -> None:
    options = read("--iso", "~no-such-user/x.iso")
    assert options.iso is not None
    assert options.iso.name == "x.iso"
    refused(check.check_iso, options.iso)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "2²", "9" * 5000])
def test_cpus_that_are_no_number(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = LaunchOptions(cpus=text).cpu_count
    assert caught.value.key == "CPUS"
    assert len(str(caught.value)) < 400


def test_unknown_options_end_with_usage() -> None:
    parser = build_parser("launcher", "x")
    assert isinstance(parser, argparse.ArgumentParser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--mem", "1G"])  # no abbreviations: a later option could change what they mean
    assert caught.value.code == EXIT_USAGE


# -- the specification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"memory_bytes": 0}, "MEMORY"),
        ({"memory_bytes": 10 * TIB}, "MEMORY"),
        ({"cpus": 0}, "CPUS"),
        ({"cpus": 256}, "CPUS"),
        ({"boot": DiskBoot()}, "DISK"),
        ({"firmware": "uefi"}, "FIRMWARE"),
        ({"disks": (Disk(Path("d"), "raw", "ide"),) * 5}, "DISK"),
        ({"disks": (Disk(Path("d"), "raw", "ide"),) * 6, "machine": "q35", "boot": IsoBoot(Path("i"))}, "DISK"),
    ],
)
def test_a_specification_that_cannot_be(changes: dict[str, Any], key: str) -> None:
    good = VMSpec(name="x", boot=DirectBoot(Path("k")), accelerator="tcg")
    with pytest.raises(ConfigError) as caught:
        replace(good, **changes)
    assert caught.value.key == key
    assert caught.value.hint


# -- prepare -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(runtime: Path) -> InstanceFiles:
    return open_instance_files(runtime, "one")


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, content in (("iso", ISO), ("kernel", BZIMAGE), ("initrd", RAW), ("disk", QCOW2)):
        made[name] = tmp_path / f"a, '{name}' ü"
        made[name].write_bytes(content)
    return made


def of(images: dict[str, Path], *names: str, **more: Any) -> LaunchOptions:
    chosen: dict[str, Any] = {name: images[name] for name in names}
    return LaunchOptions(**{"accel": "tcg", **chosen, **more})


async def test_what_is_booted(files: InstanceFiles, images: dict[str, Path], need: Any) -> None:
    need("qemu")

    async def spec_of(*names: str, **more: Any) -> VMSpec:
        return (await prepare(of(images, *names, **more), files, with_agent=True)).spec

    assert (await spec_of("iso")).boot == IsoBoot(images["iso"])
    spec = await spec_of("disk")
    assert (spec.boot, spec.disks) == (DiskBoot(), (Disk(images["disk"], "qcow2"),))
    spec = await spec_of("kernel", "initrd", "disk", append="quiet")
    assert spec.boot == DirectBoot(images["kernel"], images["initrd"], "console=ttyS0 quiet")
    assert len(spec.disks) == 1
    spec = await spec_of("kernel", append="console=tty0")
    assert isinstance(spec.boot, DirectBoot)
    assert spec.boot.command_line == "console=tty0"
    assert spec.disks == ()
    spec = await spec_of("iso", "disk")
    assert (spec.boot, len(spec.disks)) == (IsoBoot(images["iso"]), 1)
    assert not files.data_disk.exists()


@pytest.mark.parametrize(
    ("names", "more", "kind"),
    [
        (("kernel", "iso"), {}, ConfigError),
        (("initrd",), {}, ConfigError),
        (("kernel",), {"boot": "iso"}, ConfigError),
        ((), {"boot": "disk"}, ConfigError),
        ((), {"memory": "garbage"}, ConfigError),
        ((), {"memory": "0"}, ConfigError),
        ((), {"memory": "10T"}, ControlError),
        ((), {"memory": "9" * 12 + "T"}, ControlError),
        ((), {"cpus": "many"}, ConfigError),
        ((), {"cpus": "0"}, ConfigError),
        ((), {"cpus": "1000"}, ConfigError),
        ((), {"share": Path("/nowhere")}, ImageError),
        ((), {"qemu": "no-such-qemu"}, HostError),
        ((), {"iso": Path("/nowhere")}, ImageError),
        ((), {"disk": Path("/")}, ImageError),
    ],
)
async def test_what_is_refused_changes_nothing(
    files: InstanceFiles,
    images: dict[str, Path],
    names: tuple[str, ...],
    more: Any,
    kind: type[ControlError],
    need: Any,
) -> None:
    need("qemu")
    need("image")
    with pytest.raises(kind) as caught:
        await prepare(of(images, *names, **more), files, with_agent=True)
    assert caught.value.hint
    assert list(files.directory.iterdir()) == []


# -- until -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=10), max_size=10), st.lists(st.binary(max_size=10), max_size=10), st.data())
def test_a_pattern_is_seen_however_the_bytes_are_cut(before: list[bytes], after: list[bytes], data: Any) -> None:
    stream = b"".join(before) + b"agent ready" + b"".join(after)
    matcher = UntilMatcher(re.compile(rb"agent ready"))
    position, seen = 0, False
    while position < len(stream):
        size = data.draw(st.integers(1, 8))
        seen = matcher.feed(stream[position : position + size]) or seen
        position += size
    assert seen


@pytest.mark.parametrize(
    ("pattern", "chunks", "seen"),
    [
        (rb"^login: $", [b"Debian\r\nlog", b"in: "], True),
        (rb"^done$", [b"done", b"\r", b"\n"], True),
        (rb"^b$", [b"a\r", b"\nb\r", b"\n"], True),
        (rb"^ready", [b"al", b"ready"], False),
        (rb"a\nb", [b"a\n", b"b\n"], False),  # one line at a time
        (rb"\xff", [b"\xff"], True),
    ],
)
def test_patterns_and_line_ends(pattern: bytes, chunks: list[bytes], seen: bool) -> None:
    matcher = UntilMatcher(re.compile(pattern, re.MULTILINE))
    found = [matcher.feed(chunk) for chunk in chunks]
    assert any(found) is seen


def test_an_endless_line_is_held_up_to_a_limit() -> None:
    matcher = UntilMatcher(re.compile(b"never"))
    for _ in range(100):
        assert not matcher.feed(b"x" * 100_000)
        assert len(matcher._partial) <= LINE_LIMIT_BYTES


# -- what is shown -----------------------------------------------------------------------------------------------------

RAW_TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from("\x1b\x07\r\n\b\x9b\x00\u202e\u2028[]0;2Jm"), st.characters(exclude_categories=["Cs"])
    ),
    min_size=1, max_size=40,
)  # fmt: skip


def assert_one_safe_line(line: str) -> None:
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", line), ascii(line)


@given(RAW_TEXT, st.dictionaries(RAW_TEXT, st.one_of(RAW_TEXT, st.lists(RAW_TEXT, max_size=2)), max_size=3))
def test_nothing_of_a_hostile_message_reaches_the_terminal_raw(text: str, details: dict[str, Any]) -> None:
    message = build_message("vm-to-host", "status", text, details, now=datetime.now(UTC))
    assert_one_safe_line(render_message(message, colour=False))
    coloured = render_message(message, colour=True)
    assert_one_safe_line(re.sub(r"\x1b\[(?:0|2|31|36)m", "", coloured))
    assert coloured.endswith("\x1b[0m")


def test_huge_details_are_cut() -> None:
    message = build_message("vm-to-host", "error", "x", {"k": "v" * 100_000}, now=datetime.now(UTC))
    line = render_message(message, colour=False)
    assert len(line) < 600
    assert "100" in line


@given(RAW_TEXT, RAW_TEXT, RAW_TEXT)
def test_an_error_is_a_sentence_its_evidence_and_the_way_out(sentence: str, seen: str, hint: str) -> None:
    errors: list[ControlError] = [
        BootError(sentence, code="x", seen=(seen,), hint=hint),
        LaunchError(sentence, argv=("q",), return_code=1, output_tail=(seen,), hint=hint),
    ]
    for error in errors:
        lines = render_error(error, colour=False).split("\n")
        assert [line[:4] for line in lines] == ["erro", "  | ", "  tr"]
        for line in lines:
            assert_one_safe_line(line)


# -- the terminal ------------------------------------------------------------------------------------------------------


async def test_the_terminal_is_raw_and_is_restored() -> None:
    outer, inner = pty.openpty()
    try:
        before = termios.tcgetattr(inner)
        flags = fcntl.fcntl(inner, fcntl.F_GETFL)
        with pytest.raises(KeyError), open_terminal(inner) as terminal:
            os.write(outer, b"\x03\x1a\x11\r" + bytes([ESCAPE_KEY]))
            async with asyncio.timeout(5):
                assert await terminal.read() == b"\x03\x1a\x11\r" + bytes([ESCAPE_KEY])
            terminal.enter_line_mode()
            os.write(outer, b"helo\x7f\x7flp\n")
            async with asyncio.timeout(5):
                assert await terminal.read() == b"help\n"
            os.write(outer, b"half\x03")
            async with asyncio.timeout(5):
                assert await terminal.read() == b"half\x03"
            raise KeyError
        assert termios.tcgetattr(inner) == before
        assert fcntl.fcntl(inner, fcntl.F_GETFL) == flags
    finally:
        os.close(outer)
        os.close(inner)


async def test_a_terminal_that_goes_away_reads_as_its_end() -> None:
    outer, inner = pty.openpty()
    os.close(outer)
    try:
        async with asyncio.timeout(5):
            assert await read_ready(inner) == b""
    finally:
        os.close(inner)


async def test_every_kind_of_stdin_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    for path, expected in ((tmp_path / "file", b"text"), (Path("/dev/null"), b"")):
        descriptor = os.open(path, os.O_RDONLY)
        assert await read_ready(descriptor) == expected
        os.close(descriptor)
    read_end, write_end = os.pipe()
    os.write(write_end, b"piped")
    assert await read_ready(read_end) == b"piped"
    os.close(write_end)
    assert await read_ready(read_end) == b""
    os.close(read_end)


async def test_a_message_in_the_middle_of_a_console_line_hides_neither() -> None:
    for pattern in (b"^login: ", b"^agent ready$"):
        seen = asyncio.Event()
        watcher = _Watcher(View(), UntilMatcher(re.compile(pattern, re.MULTILINE)), seen)
        await watcher.on_console(b"log")
        message = build_message("vm-to-host", "status", "agent ready", now=datetime.now(UTC))
        await watcher.on_message(message, "agent")
        assert seen.is_set() == (b"agent" in pattern)
        await watcher.on_console(b"in: ")
        assert seen.is_set()
