"""The shared directory: commands dropped into `inbox/` are answered in `outbox/`, and no link leads out of it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boot.launching import GuestShell, Launch, open_guest_shell, open_launch
from tests.boot.test_stdin_messages import message


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launch, GuestShell, Path]]:
    """One VM with a share whose path has a blank, a comma and more in it."""
    cwd = tmp_path_factory.mktemp("share")
    share = cwd / "a share, with 'everything' ü"
    share.mkdir()
    with open_launch("enhanced_vm", "--share", str(share), cwd=cwd) as launch:
        launch.wait_for(rb"boot finished")
        with open_guest_shell(launch) as shell:
            shell.run("until grep -q ' /mnt/host 9p ' /proc/mounts; do sleep 0.1; done")
            yield launch, shell, share


def drop(share: Path, name: str, data: bytes) -> None:
    """Put a command into the inbox as docs/protocol.md wants it: complete at once."""
    (share / "inbox" / f".{name}").write_bytes(data)
    (share / "inbox" / f".{name}").rename(share / "inbox" / f"{name}.json")


def wait_for_answer(share: Path, name: str, within_s: float = 20.0) -> dict[str, Any]:
    path = share / "outbox" / f"{name}.json"
    deadline = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < deadline, sorted(found.name for found in share.rglob("*"))
        time.sleep(0.002)
    answer: dict[str, Any] = json.loads(path.read_bytes())
    return answer


def test_a_command_is_answered_sooner_than_polling_could(shared: tuple[Launch, GuestShell, Path]) -> None:
    launch, _, share = shared
    took = []
    for number in range(9):
        started = time.monotonic()
        drop(share, f"ask-{number}", message("diagnostics", id=f"share.{number}"))
        answer = wait_for_answer(share, f"ask-{number}")
        took.append(time.monotonic() - started)
        assert answer["in_reply_to"] == f"share.{number}"
        assert answer["data"]["message"] == "diagnostics done"
        assert not (share / "inbox" / f"ask-{number}.json").exists()
    # Without a nudge the agent looks once a second, and each of these was put there when it had just looked.
    assert statistics.median(took) < 0.8, took
    launch.wait_until(
        lambda: any(m.get("in_reply_to") == "share.8" for m in launch.messages()), "the answer in the journal"
    )


def test_what_is_no_command_is_answered_with_an_error(shared: tuple[Launch, GuestShell, Path]) -> None:
    _, _, share = shared
    drop(share, "nonsense", b"restart please")
    assert wait_for_answer(share, "nonsense")["type"] == "error"
    drop(share, "half", message("diagnostics")[:40])
    assert wait_for_answer(share, "half")["type"] == "error"


def test_no_link_in_the_outbox_is_followed(shared: tuple[Launch, GuestShell, Path]) -> None:
    launch, shell, share = shared
    secret = launch.files.directory / "secret.json"
    nonce = "secret-4711"
    secret.write_bytes(message(nonce, direction="vm-to-host", type_="status"))
    shell.run(
        f"ln -s '{secret}' /mnt/host/outbox/.planted && mv /mnt/host/outbox/.planted /mnt/host/outbox/planted.json"
    )
    # However the share keeps a guest's links, a real one is not followed either.
    (share / "outbox" / ".link").symlink_to(secret)
    (share / "outbox" / ".link").rename(share / "outbox" / "link.json")
    # A message that is no link is seen, so the two before it have been looked at.
    drop(share, "after", message("diagnostics", id="after.link"))
    launch.wait_until(
        lambda: any(m.get("in_reply_to") == "after.link" for m in launch.messages()), "the answer after the links"
    )
    assert nonce.encode() not in launch.files.messages.read_bytes()
    assert nonce.encode() not in launch.stdout


def test_a_link_in_the_inbox_is_not_followed_by_the_guest(shared: tuple[Launch, GuestShell, Path]) -> None:
    _, shell, share = shared
    shell.run("echo '{}' > /root/guest-file")
    (share / "inbox" / ".way-out").symlink_to("/root/guest-file")
    (share / "inbox" / ".way-out").rename(share / "inbox" / "way-out.json")
    drop(share, "beside", message("diagnostics", id="beside"))
    wait_for_answer(share, "beside")
    assert (
        not (share / "outbox" / "way-out.json").exists() or "refused" in (share / "outbox" / "way-out.json").read_text()
    )
    (share / "inbox" / "way-out.json").unlink(missing_ok=True)


def test_hostile_files_in_the_outbox_cost_nothing(shared: tuple[Launch, GuestShell, Path]) -> None:
    launch, shell, share = shared
    before = launch.peak_bytes()
    shell.run("head -c 30000000 /dev/zero > /mnt/host/outbox/large.json", within_s=60)
    shell.run("mkdir -p /mnt/host/outbox/directory.json; printf '\\377\\376{' > /mnt/host/outbox/broken.json")
    shell.run("for n in $(seq 300); do echo '{\"half\": ' > /mnt/host/outbox/flood-$n.json; done", within_s=60)
    drop(share, "still-there", message("diagnostics", id="still.there"))
    launch.wait_until(
        lambda: any(m.get("in_reply_to") == "still.there" for m in launch.messages()), "an answer after the flood"
    )
    assert launch.peak_bytes() < before + 8 * 1024 * 1024
