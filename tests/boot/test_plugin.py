"""The pytest plugin, as a project beside this one uses it: its examples, and what it says of tests that fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from control.paths import ROOT
from tests.qemu.fleets import Desk, open_desk

EXAMPLES = ROOT / "docs" / "examples" / "pytest"
WITHIN_S = 300


@dataclass(frozen=True)
class Run:
    """What a pytest run came to: how many tests ended in which way, and all it said."""

    exit_code: int
    text: str

    def count(self, what: str) -> int:
        last = self.text.strip().splitlines()[-1]
        found = re.search(rf"(\d+) {what}", last)
        return int(found[1]) if found else 0


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Whose cache has the templates of this module; there is no configuration."""
    with open_desk(Path(tmp_path_factory.mktemp("plugin"))) as desk:
        yield desk
        desk.wait_until_gone()
        assert not list((desk.directory / ".cache/unhinged/run").glob("vm.*"))


def begin_pytest(desk: Desk, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start pytest as a project does that has no other plugins of ours, with the desk's cache."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "XDG_"))}
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout", "--rootdir", str(folder))
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=folder,
        env={**inherited, "HOME": str(desk.directory), "COLUMNS": "150"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_pytest(desk: Desk, folder: Path, *words: str) -> Run:
    with begin_pytest(desk, folder, *words) as process:
        text = process.communicate(timeout=WITHIN_S)[0]
    return Run(process.returncode, text)


def write_suite(desk: Desk, name: str, text: str) -> Path:
    folder = desk.directory / name
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nvm_net = none\nvm_timeout = 30\n")
    (folder / "test_it.py").write_text(f"import pytest\n\n{text}")
    return folder


QUICK_EXAMPLES = "commands or waiting or console or files or network"
"""All of them are run by tests/image/test_wheel.py, which is slow."""


@pytest.mark.slow
def test_the_examples(desk: Desk) -> None:
    folder = desk.directory / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns(".unhinged", "__pycache__"))
    run = run_pytest(desk, folder, "-k", QUICK_EXAMPLES)
    assert (run.exit_code, run.count("passed")) == (0, 5), run.text
    assert not (folder / ".unhinged").exists()  # nothing failed, so there is nothing to be looked at


FAILING = """
def test_command(vm):
    vm.succeed("echo before > /dev/console")
    vm.succeed("echo out; echo err >&2; exit 9")

def test_wanted_to_fail(vm):
    vm.fail("true")

def test_waiting(vm):
    vm.wait_for_open_port(4321, timeout=0.5)

def test_console(vm):
    vm.wait_for_console_text("never said", timeout=0.5)

def test_unit(vm):
    vm.wait_for_unit("no-such-unit", timeout=0.5)

def test_too_long(vm):
    vm.succeed("sleep 60", timeout=1)
"""


def test_what_is_said_of_tests_that_fail(desk: Desk) -> None:
    folder = write_suite(desk, "failing", FAILING)
    run = run_pytest(desk, folder, "--junit-xml", "junit.xml", "--vm-artifacts", "evidence")
    assert run.count("failed") == 6, run.text
    for said in (
        "this failed in vm:", "exit code 9 after", "stdout: out", "stderr: err", "vm: console", "vm: commands",
        "this succeeded in vm:", "nothing listens at port 4321 in vm, after 0.5 s",
        "the console of vm did not say 'never said' within 0.5 s:", "no-such-unit is unknown",
        "the end of sleep 60",
    ):  # fmt: skip
        assert said in run.text, said
    assert "control/testing/machine.py" not in run.text.split("test_too_long")[0].rsplit("test_command", 1)[-1]
    evidence = folder / "evidence" / "test_it.py-test_command"
    assert "before" in (evidence / "vm.console.log").read_text()
    assert "Linux version" in (evidence / "vm.kernel.log").read_text()
    assert "$ echo out" in (evidence / "vm.commands.log").read_text()
    assert (evidence / "vm.screen.png").read_bytes().startswith(b"\x89PNG")
    failures = {case.get("name"): case.findtext("failure") for case in ET.parse(folder / "junit.xml").iter("testcase")}
    for part in ("vm: console", "before", "vm: commands", "exit code 9", str(evidence)):
        assert part in (failures["test_command"] or ""), part


TROUBLED = """
def test_oops(vm):
    vm.succeed("echo '<1>BUG: unable to handle page fault' > /dev/kmsg")
    vm.wait_for_console_text("BUG:")

def test_what_a_program_says_counts_for_nothing(vm):
    vm.succeed("echo 'BUG: said by me' > /dev/console")
    vm.wait_for_console_text("BUG:")

@pytest.mark.vm(allow="oops")
def test_it_is_allowed(vm):
    vm.succeed("echo '<1>BUG: unable to handle page fault' > /dev/kmsg")
    vm.wait_for_console_text("BUG:")

@pytest.mark.vm(memory="192M")
def test_out_of_memory(vm):
    vm.execute("(sh -c 'x=x; while :; do x=$x$x; done'); true")
    vm.wait_for_console_text("Out of memory: Killed process")

def test_unit(vm):
    vm.succeed("echo 'service mine failed' 1<> /run/unhinged-agent/events", "sleep 0.3")

def test_panic(vm):
    vm.succeed("(sleep 0.2; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    vm.wait_for_console_text("end Kernel panic")
"""


@pytest.mark.slow
def test_a_guest_in_trouble_fails_its_test(desk: Desk) -> None:
    run = run_pytest(desk, write_suite(desk, "troubled", TROUBLED))
    assert (run.count("failed"), run.count("passed")) == (4, 2), run.text
    for said in (
        "something is wrong with the guest, though the test did not fail",
        "vm: oops: BUG: unable to handle page fault",
        "vm: oom: Out of memory: Killed process",
        "vm: unit: service mine failed",
        "vm: panic: Kernel panic - not syncing: sysrq triggered crash",
    ):
        assert said in run.text, said


KEPT = """
def test_good(vm):
    vm.succeed("true")

def test_bad(vm):
    vm.succeed("echo mine > /root/mine", "false")
"""


def test_one_is_left_to_be_looked_at(desk: Desk) -> None:
    folder = write_suite(desk, "kept", KEPT)
    run = run_pytest(desk, folder, "--vm-keep-on-fail", "-n", "1")
    assert (run.count("failed"), run.count("passed")) == (1, 1), run.text
    assert "machines that were kept" in run.text
    told = re.search(
        r"test_it\.py::test_bad: vm: unhinged (-c \S+) exec (\S+) -t -- sh  \(throw it away: (.*)\)", run.text
    )
    assert told is not None, run.text
    assert desk.run(*told[1].split(), "exec", told[2], "--", "cat", "/root/mine").stdout == "mine\n"
    assert desk.run(*told[3].split()[1:]).exit_code == 0


MATRIX = """
def test_memory(vm, request):
    megabytes = int(vm.succeed("awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo"))
    wanted = int(request.node.callspec.id.split("-")[0].removesuffix("M"))
    assert wanted * 0.6 < megabytes < wanted

def test_without_a_machine():
    pass

def test_shared(vm_session, request):
    assert vm_session.succeed("nproc").strip() == request.node.callspec.id.split("-")[1]
"""


@pytest.mark.slow
def test_a_matrix_on_two_workers(desk: Desk) -> None:
    folder = write_suite(desk, "matrix", MATRIX)
    matrix = ("--vm-matrix", "memory=192M,256M", "--vm-matrix", "cpus=1")
    run = run_pytest(desk, folder, *matrix, "-n", "2")
    assert (run.exit_code, run.count("passed")) == (0, 5), run.text
    run = run_pytest(desk, folder, *matrix, "--collect-only")
    assert "test_memory[192M-1]" in run.text and "test_shared[256M-1]" in run.text
    run = run_pytest(desk, folder, "--vm-matrix", "color=red")
    assert run.exit_code == 4 and "--vm-matrix 'color=red' is not KEY=VALUE" in run.text


WRONG = """
@pytest.mark.vm(imag="builtin")
def test_unknown_word(vm): ...

@pytest.mark.vm("builtin")
def test_no_word(vm): ...

@pytest.mark.vm(image="no-such-image")
def test_no_image(vm): ...

@pytest.mark.vm(files={"/srv/x": "no-such-file"})
def test_no_file(vm): ...

def test_lan_of_nobody(vm_lan):
    vm_lan(0)
"""


def test_wishes_that_cannot_be(desk: Desk) -> None:
    run = run_pytest(desk, write_suite(desk, "wrong", WRONG))
    assert (run.count("error"), run.count("failed")) == (4, 1), run.text
    for said in (
        "a VM has no 'imag'", "did you mean image", "takes words with names only", "there is no image 'no-such-image'",
        "no-such-file", "a network has 1 to 32 machines",
    ):  # fmt: skip
        assert said in run.text, said


def test_nothing_is_left_when_it_is_killed(desk: Desk) -> None:
    text = "def test_it(vm):\n    print('ready', flush=True)\n    vm.execute('sleep 600')\n"
    process = begin_pytest(desk, write_suite(desk, "killed", text), "-s")
    assert process.stdout is not None
    while "ready" not in (line := process.stdout.readline()):
        assert line, "it ended"
    process.kill()
    process.communicate(timeout=60)
    desk.wait_until_gone()
