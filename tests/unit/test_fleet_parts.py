"""The small parts behind `unhinged`: plain data and back, command lines, logs, what is bounded."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control.cli import logs
from control.cli.main import main, parse
from control.console.follow import follow
from control.errors import EXIT_USAGE, ConfigError, LaunchError, WaitTimeout
from control.failure import RemoteError, build_failure
from control.paths import ROOT
from control.spec.network import Forward, Network
from control.spec.plain import from_plain, to_plain
from control.spec.tomlfile import ConfigFileError
from control.spec.vm_spec import DirectBoot, Disk, DiskBoot, IsoBoot, RawSpec, Share, Spec, VMSpec
from control.units import MIB
from control.vm.rpc import INPUT_WINDOW_BYTES, Call
from control.wire.schema import explain

DECLARED = VMSpec(
    name="one", boot=DirectBoot(Path("/k"), Path("/i"), "console=ttyS0"), accelerator="tcg", memory_bytes=80 * MIB,
    disks=(Disk(Path("/d"), "raw", "ide", "s", True),), share=Share(Path("/s"), "tag", "mapped-file"),
    networks=(Network("restricted"), Network("lan", "l")), forwards=(Forward(8080, 80), Forward(53, 53, "", "udp")),
    realm="/r", sandbox=False, firmware="uefi", ovmf=Path("/o"), extra_args=("-a", "b"),
)  # fmt: skip
RAW = RawSpec("one", ("-a", "b"), Path("/w"), "tcg", 64 * MIB, 2, "q35", (Network("tap", "t"),), share=DECLARED.share)


@pytest.mark.parametrize(
    "spec",
    [
        DECLARED,
        replace(DECLARED, boot=IsoBoot(Path("/x.iso")), share=None),
        replace(DECLARED, boot=DiskBoot()),
        RAW,
        RawSpec("one", (), Path("/")),
    ],
)
def test_a_specification_survives_being_written_down(spec: Spec) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(spec)))) == spec


@pytest.mark.parametrize(
    "change",
    [{"kind": None}, {"boot": {}}, {"boot": 1}, {"memory_bytes": "x"}, {"networks": 3}, {"more": 1}, {"disks": [1]}],
)
def test_what_is_no_specification_is_one_clear_error(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_plain({**to_plain(DECLARED), **change})
    assert caught.value.hint


def test_errors_cross_a_socket_whole() -> None:
    for error in (
        LaunchError("QEMU died", argv=("q",), return_code=1, output_tail=("no such device",), hint="look"),
        WaitTimeout("the agent", 3.0, last_seen=("a", "b")),
        ConfigFileError("is wrong", file=Path("u.toml"), line=3, table="vm.a", key="vm.a.x", hint="do"),
    ):
        failure = build_failure(error)
        assert not explain("failure", failure)
        again = RemoteError(json.loads(json.dumps(failure)))
        assert (str(again), again.hint, again.exit_code, again.evidence) == (
            str(error), error.hint, error.exit_code, error.evidence,
        )  # fmt: skip
        assert build_failure(again)["kind"] == type(error).__name__


# -- command lines -----------------------------------------------------------------------------------------------------


def test_a_command_for_the_guest_is_left_as_it_is() -> None:
    options = parse(["exec", "one", "--timeout", "3", "--", "ls", "--json", "--", "-c", "x"])
    assert (options.name, options.timeout, options.json) == ("one", 3.0, False)
    assert options.words == ["ls", "--json", "--", "-c", "x"]
    assert parse(["exec", "one", "true"]).words == ["true"]


def test_common_options_stand_on_either_side() -> None:
    for words in (["--json", "-c", "f", "list"], ["list", "--json", "-c", "f"], ["-c", "f", "list", "--json"]):
        options = parse(words)
        assert (options.json, options.config) == (True, "f"), words
    assert (parse(["list"]).json, parse(["list"]).config) == (False, None)


@pytest.mark.parametrize(
    "words", [[], ["nonsense"], ["stop", "a", "--timeout", "x"], ["stop", "a", "--timeout", "inf"]]
)
def test_a_wrong_command_line_is_an_error_like_others(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", *words]) == EXIT_USAGE
    assert not explain("cli/error", json.loads(capsys.readouterr().out))


def test_list_does_without_what_it_does_not_need() -> None:
    """A command that is typed all day must be quick: see the bench for how quick."""
    code = "import sys; import control.cli.main, control.cli.show, control.vm.remote; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 5, b"a\nb\n"),
        (b"a\n", 0, b""),
        (b"", 3, b""),
        (b"\n\n\n", 1, b"\n"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 1 << 20])
def test_the_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, lines: int, expected: bytes, piece: int
) -> None:
    monkeypatch.setattr(logs, "PIECE_BYTES", piece)
    path = tmp_path / "log"
    path.write_bytes(text)
    assert text[logs._find_start(path, lines) :] == expected


def test_a_log_is_followed_until_its_writer_ends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    writer = subprocess.Popen(["sh", "-c", 'read x; printf "then " >> "$0"; read x; printf last >> "$0"', str(path)],
                              stdin=subprocess.PIPE)  # fmt: skip
    assert writer.stdin is not None
    descriptor, pidfd = os.open(path, os.O_RDONLY), os.pidfd_open(writer.pid)
    try:
        seen = b""
        burying = threading.Thread(target=writer.wait)
        for piece in follow(descriptor, pidfd):
            seen += piece
            if seen.endswith((b"before ", b"then ")):
                writer.stdin.write(b"\n")
                writer.stdin.flush()
            if seen.endswith(b"then "):
                burying.start()
        burying.join()
        assert seen == b"before then last"
    finally:
        os.close(descriptor)
        os.close(pidfd)
        writer.stdin.close()
        writer.wait()


# -- what is bounded ---------------------------------------------------------------------------------------------------


class _Ear:
    """A caller that hears."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_caller_sends_no_more_than_a_window() -> None:
    ear = _Ear()
    call = Call(1, ear)  # type: ignore[arg-type]
    assert call.take_input(b"x" * INPUT_WINDOW_BYTES, end=False)
    assert not call.take_input(b"x", end=False)
    assert await call.read_input() == b"x" * INPUT_WINDOW_BYTES
    assert ear.sent[-1]["params"] == {"call": 1, "bytes": INPUT_WINDOW_BYTES}
    assert not explain("control/taken.event", ear.sent[-1]["params"])
    assert call.take_input(b"", end=True)
    assert await asyncio.wait_for(call.read_input(), 5) == b"x"
    assert await asyncio.wait_for(call.read_input(), 5) is None


async def test_output_is_sent_in_pieces_that_fit_their_schema() -> None:
    ear = _Ear()
    await Call(1, ear).send_output("stdout", bytes(range(256)) * 1000)  # type: ignore[arg-type]
    assert all(not explain("control/output.event", message["params"]) for message in ear.sent)
    assert b"".join(base64.b64decode(message["params"]["data"]) for message in ear.sent) == bytes(range(256)) * 1000


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_without_a_standard_stream_does_its_work(tmp_path: Path, closed: str) -> None:
    (tmp_path / "unhinged.toml").write_text('[vm.a]\nimage = "builtin"\n')
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from control.cli.begin import run; run()"
    words = shlex.join([sys.executable, "-P", "-c", code, "list"])
    ended = subprocess.run(
        ["sh", "-c", f"{words} {closed}"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ("NAME" in ended.stdout) == (">&-" not in closed.split())
