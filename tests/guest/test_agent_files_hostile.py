"""Files where somebody in the guest works against the agent, or where a file system is at its edges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guest import treeform
from tests.guest.agentprocess import AgentProcess
from tests.guest.test_agent_files_transfer import put_done

NOT_PERMITTED, FAILED = -32003, -32005
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is led to do what others may not: run as root")


@pytest.fixture(autouse=True)
def session(agent: AgentProcess) -> None:
    agent.hello()


# What was planted before the agent came


def test_a_planted_part_is_not_gone_on_with(agent: AgentProcess, tmp_path: Path) -> None:
    """A kept part has a name that anybody can tell: as a second name of another file it must not be written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".new.unhinged-part").hardlink_to(victim)
    sent = treeform.encode_file("", b"new content") + treeform.encode_end(1, 11)
    put_done(agent, tmp_path / "new", sent, resume=True)
    assert (tmp_path / "new").read_text() == "new content"
    assert victim.read_text() == "precious"
    assert (tmp_path / "new").stat().st_ino != victim.stat().st_ino


@as_root
def test_a_part_of_somebody_else_is_not_gone_on_with(agent: AgentProcess, tmp_path: Path) -> None:
    """Whoever made it may still have it open, and would own what it becomes."""
    part = tmp_path / ".new.unhinged-part"
    part.write_text("x")
    os.chown(part, NOBODY, NOBODY)
    with part.open("r+b") as theirs:
        sent = treeform.encode_file("", b"new content", mode=0o600) + treeform.encode_end(1, 11)
        put_done(agent, tmp_path / "new", sent, resume=True)
        theirs.write(b"changed")
    assert (tmp_path / "new").read_text() == "new content"
    assert (tmp_path / "new").stat().st_uid == 0


# What is planted while the agent works


# Edges of file systems


# Keys
