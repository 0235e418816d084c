"""Machines of a configuration as a cluster: here programs on terminals, in tests/boot VMs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import ConfigError, ControlError
from control.session import CommandTimeout, Done, SessionEnded, create_cluster, start_machine, stop_machine
from tests.qemu.fleets import WITHIN_S, Desk, open_desk

SHELL = """
[vm.{name}]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
"""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write("".join(SHELL.format(name=name) for name in ("a", "b", "c")))
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


def output_of(answer: Done | ControlError) -> str:
    assert isinstance(answer, Done), answer
    return answer.output


def test_a_cluster_works_with_one_killed_in_the_middle(desk: Desk) -> None:
    assert start_machine("b", config=desk.directory)
    assert not start_machine("b", config=desk.directory)
    with create_cluster(["a", "b", "c"], config=desk.directory, timeout=WITHIN_S) as cluster:
        assert (len(cluster), list(cluster.members)) == (3, ["a", "b", "c"])
        cluster.broadcast("own=$((RANDOM)); echo hello; (exit 3)")
        for done in cluster.gather().values():
            assert isinstance(done, Done)
            assert (done.output, done.exit_code) == ("hello\n", 3)
        cluster.broadcast("sleep 0.5; echo ended")
        os.kill(desk.status("c")["holder"]["pid"], signal.SIGKILL)
        answers = cluster.gather(timeout=WITHIN_S)
        assert (output_of(answers["a"]), output_of(answers["b"])) == ("ended\n", "ended\n")
        assert isinstance(answers["c"], SessionEnded)
        with pytest.raises(ConfigError, match="0 shares for 3 members"):
            cluster.scatter("echo", [])
    assert {vm["name"]: vm["state"] for vm in desk.ask("list", "list")["vms"]} == {
        "a": "STOPPED",
        "b": "RUNNING",
        "c": "FAILED",
    }
    assert stop_machine("b", config=desk.directory)
    assert not stop_machine("b", config=desk.directory)


def test_a_command_that_takes_too_long_is_the_answer_of_its_machine(desk: Desk) -> None:
    with create_cluster(["a", "b"], config=desk.directory) as cluster:
        cluster.broadcast("tty; sleep 1000", timeout=1.0)
        answers = cluster.gather()
        assert all(isinstance(answer, CommandTimeout) for answer in answers.values())
        cluster.broadcast("echo alive")
        assert [output_of(answer) for answer in cluster.gather().values()] == ["alive\n", "alive\n"]


def test_one_that_cannot_be_started_leaves_none(desk: Desk) -> None:
    desk.write(SHELL.format(name="a") + SHELL.format(name="b").replace("bash", "no-such-program"))
    with pytest.raises(ControlError, match="no-such-program"):
        create_cluster(["a", "b"], config=desk.directory)
    assert desk.status("a")["state"] in ("STOPPED", "DEFINED")
    with pytest.raises(ConfigError):
        create_cluster(["a", "nobody"], config=desk.directory)
