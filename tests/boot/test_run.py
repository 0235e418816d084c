"""`unhinged run`: a command in a machine that is thrown away after it, as a person and a script use it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_TIMEOUT
from control.paths import IMAGE
from tests.qemu.fleets import Desk, finish, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk at which the template is made already; there is no configuration."""
    with open_desk(Path(tmp_path_factory.mktemp("run"))) as desk:
        done = desk.run("run", "--", "true")
        assert done.exit_code == 0 and "making a template" in done.stderr
        yield desk
        wait_until_nothing_is_left(desk)


def find_machines(desk: Desk) -> list[str]:
    return sorted(path.name for path in (desk.directory / ".cache/unhinged/run").glob("vm.*"))


def wait_until_nothing_is_left(desk: Desk) -> None:
    desk.wait_until_gone()
    deadline = time.monotonic() + 30
    while find_machines(desk):
        assert time.monotonic() < deadline, find_machines(desk)


def test_streams_are_apart_and_the_status_is_the_programs(desk: Desk) -> None:
    done = desk.run("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert find_machines(desk) == []


def test_what_it_reads(desk: Desk) -> None:
    process = desk.begin("run", "--", "wc", "-c", stdin=subprocess.PIPE)
    assert process.communicate("data\n", timeout=60)[0] == "5\n"
    assert desk.run("run", "-n", "--", "wc", "-c").stdout == "0\n"


def test_each_is_another_machine_and_reaches_nothing(desk: Desk) -> None:
    told = [desk.run("run", "--", "sh", "-c", "cat /etc/machine-id; echo x >> /root/x; cat /root/x") for _ in range(2)]
    first, second = (done.stdout.splitlines() for done in told)
    assert first[0] != second[0] and first[1:] == second[1:] == ["x"]
    assert desk.run("run", "--", "ls", "/sys/class/net").stdout == "lo\n"


def test_a_network_only_where_it_is_asked_for(desk: Desk) -> None:
    done = desk.run("run", "--net", "user", "--", "ls", "/sys/class/net")
    assert done.stdout == "eth0\nlo\n"
    done = desk.run("run", "--net", "user", "--", "cat", "/sys/class/net/eth0/operstate")
    assert (done.stdout, done.stderr) == ("up\n", "")  # this template is there now as well


def test_fresh(desk: Desk) -> None:
    assert desk.run("run", "--fresh", "--", "hostname").stdout == "unhinged\n"


def test_the_document(desk: Desk) -> None:
    document = desk.ask("run", "run", "--", "sh", "-c", "echo out; exit 3")
    assert document["exit_code"] == 3 and document["stdout"] == "out\n"


def test_what_cannot_be_run(desk: Desk) -> None:
    done = desk.run("run", "--", "no-such-program")
    assert done.exit_code == 127 and "no-such-program" in done.stderr and done.stdout == ""
    assert desk.run("run", "--", "/etc/passwd").exit_code == 126
    assert "no program is named" in desk.run("run").stderr
    for word, why in (("cpu=0", "cpu cannot be '0'"), ("memory=1M", "16 MiB is the least"), ("x=1", "is no limit")):
        assert why in desk.run("run", "--limit", word, "--", "true").stderr
    assert find_machines(desk) == []


@pytest.mark.slow
def test_other_images(desk: Desk) -> None:
    kernel = IMAGE / "bzImage"
    done = desk.run("run", "--image", str(kernel), "--", "uname", "-s")
    assert done.stdout == "Linux\n" and f"template of {kernel}" in done.stderr
    tree = desk.directory / "linux"
    (tree / "arch/x86/boot").mkdir(parents=True)
    (tree / "arch/x86/boot/bzImage").symlink_to(kernel)
    assert desk.run("run", "--fresh", "--image", str(tree), "--", "uname", "-s").stdout == "Linux\n"
    done = desk.run("run", "--fresh", "--image", str(IMAGE / "unhinged.iso"), "--", "cat", "/proc/sys/kernel/hostname")
    assert (done.exit_code, done.stdout) == (0, "unhinged\n")
    assert desk.run("run", "--image", str(kernel), "--", "true").stderr == ""


def test_an_image_that_is_none(desk: Desk) -> None:
    done = desk.run("run", "--image", "no-such-image", "--", "true")
    assert done.exit_code == 1 and "there is no image 'no-such-image'" in done.stderr
    (desk.directory / "empty").mkdir()
    done = desk.run("run", "--image", "./empty", "--", "true")
    assert "no kernel was built in it" in done.stderr
    assert find_machines(desk) == []


def test_a_directory_is_given_to_it(desk: Desk) -> None:
    given = desk.directory / "given"
    given.mkdir()
    (given / "file").write_text("here\n")
    (given / "link").symlink_to("file")
    done = desk.run("run", "--mount", f"{given}:ro", "--", "sh", "-c", "pwd; cat link; echo x > new")
    assert done.stdout == "/work\nhere\n" and "Read-only file system" in done.stderr
    assert sorted(path.name for path in given.iterdir()) == ["file", "link"]
    assert desk.run("run", "--mount", str(given), "--", "sh", "-c", "echo x > new").exit_code == 0
    assert (given / "new").read_text() == "x\n"


CHANGES = "echo more >> kept; rm -r gone; mkdir -p made/in; echo n > made/in/file; ln -s kept link; chmod 755 tool"


def test_a_copy_is_given_to_it(desk: Desk) -> None:
    work = desk.directory / "copy"
    (work / "gone").mkdir(parents=True)
    for name in ("kept", "gone/file", "tool", "other"):
        (work / name).write_text(name)
    run = ("run", "--sync", "--", "sh", "-c", CHANGES)
    told = ["D gone", "D gone/file", "M kept", "A link", "A made", "A made/in", "A made/in/file", "M tool"]
    done = desk.run(*run, cwd=work)
    lines = [line.removeprefix("unhinged: ") for line in done.stderr.splitlines()]
    assert lines == [*told, "nothing of that is changed here; --apply would"]
    assert (work / "kept").read_text() == "kept" and not (work / "made").exists()
    done = desk.run("run", "--sync", "--apply", *run[2:], cwd=work)
    assert [line.removeprefix("unhinged: ") for line in done.stderr.splitlines()] == told
    assert (work / "kept").read_text() == "keptmore\n" and not (work / "gone").exists()
    assert (work / "link").readlink() == Path("kept") and (work / "tool").stat().st_mode & 0o777 == 0o755
    assert desk.run("run", "--sync", "--", "true", cwd=work).stderr == "unhinged: nothing was changed\n"


def test_what_has_changed_here_too_is_left_alone(desk: Desk) -> None:
    work = desk.directory / "both"
    work.mkdir()
    for name in ("mine", "theirs"):
        (work / name).write_text("old")
    script = "echo ready; read go; echo new > mine; echo new > theirs"
    process = desk.begin("run", "--sync", "--apply", "--", "sh", "-c", script, stdin=subprocess.PIPE, cwd=work)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    (work / "mine").write_text("mine")
    told = process.communicate("\n", timeout=60)[1]
    assert "M mine (left alone: it has changed here, too)\nunhinged: M theirs\n" in told
    assert ((work / "mine").read_text(), (work / "theirs").read_text()) == ("mine", "new\n")


@pytest.mark.slow
def test_one_that_is_kept_within_limits(desk: Desk) -> None:
    fill = "echo x > /root/x; dd if=/dev/zero bs=1M count=4 > /dev/ttyS0"
    done = desk.run("run", "--keep", "--limit", "file_size=1M", "--", "sh", "-c", fill)
    name = done.stderr.split("unhinged: ")[1].split()[0]
    file = desk.directory / ".cache/unhinged/run/run.toml"
    assert f"unhinged -c {file} exec {name} -t -- sh" in done.stderr
    assert desk.run("run", "--", "true").exit_code == 0  # which sweeps what is left of others
    assert desk.run("-c", str(file), "exec", name, "--", "cat", "/root/x").stdout == "x\n"
    assert name in desk.run("-c", str(file), "list").stdout
    # What the guest writes to its console is kept on this host.
    assert "1 MiB a file, kept by setrlimit" in desk.run("-c", str(file), "status", name).stdout
    assert (desk.directory / f".cache/unhinged/run/vm.{name}/serial").stat().st_size == 1 << 20
    done = desk.run("-c", str(file), "snapshot", "save", name)
    assert done.exit_code == 1 and f"no file of {name} may grow beyond 1 MiB: file_size in limits" in done.stderr
    assert desk.run("-c", str(file), "exec", name, "--", "cat", "/root/x").stdout == "x\n"
    assert desk.run("-c", str(file), "discard", name).exit_code == 0
    assert find_machines(desk) == []


def test_what_does_not_end(desk: Desk) -> None:
    done = desk.run("run", "--timeout", "1", "--", "sh", "-c", "trap '' TERM; echo here; while :; do sleep 1; done")
    assert (done.exit_code, done.stdout) == (EXIT_TIMEOUT, "here\n") and "was killed after 1 s" in done.stderr
    done = desk.run("run", "--timeout", "2", "--", "sh", "-c", ":(){ :|:& };:; wait")
    assert done.exit_code != 0
    assert find_machines(desk) == []


def test_a_guest_that_dies_of_it(desk: Desk) -> None:
    done = desk.run("run", "--", "sh", "-c", "echo before; echo c > /proc/sysrq-trigger; sleep 60")
    assert done.exit_code != 0 and done.stderr.startswith("error: ")
    assert find_machines(desk) == []


def test_a_full_disk_is_the_guests_own(desk: Desk) -> None:
    done = desk.run("run", "--timeout", "60", "--", "sh", "-c", "cat /dev/zero > /root/full; echo $?")
    assert done.stdout == "1\n" or done.exit_code != 0
    assert desk.run("run", "--", "echo", "still").stdout == "still\n"


def test_ctrl_c_is_the_programs(desk: Desk) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    process = desk.begin("run", "--", "sh", "-c", script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert (done.exit_code, done.stdout) == (5, "caught\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_it_when_we_are_killed(desk: Desk, number: signal.Signals) -> None:
    process = desk.begin("run", "--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until_nothing_is_left(desk)


def test_nothing_is_left_of_it_when_its_supervisor_is_killed(desk: Desk) -> None:
    process = desk.begin("run", "--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for pid in find_supervisors(f"run-{process.pid}"):
        os.kill(pid, signal.SIGKILL)
    done = finish(process)
    assert done.exit_code != 0 and "supervisor has gone" in done.stderr
    wait_until_nothing_is_left(desk)


def test_what_two_that_were_killed_leave_the_next_one_removes(desk: Desk) -> None:
    process = desk.begin("run", "--", "sh", "-c", "echo ready; sleep 600")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    for pid in find_supervisors(f"run-{process.pid}"):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate(timeout=60)
    desk.wait_until_gone()
    assert [name.rsplit("-", 1)[0] for name in find_machines(desk)] == [f"vm.run-{process.pid}"]
    assert desk.run("run", "--", "true").exit_code == 0
    assert find_machines(desk) == []


def find_supervisors(name: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended
            if any(word.startswith(name.encode()) for word in words) and any(
                word.endswith(b"supervise.py") for word in words
            ):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_twenty_at_once(desk: Desk) -> None:
    all_of_them = [desk.begin("run", "--", "sh", "-c", f"echo {number}") for number in range(20)]
    done = [finish(process, within_s=120) for process in all_of_them]
    assert [each.stdout for each in done] == [f"{number}\n" for number in range(20)], done
    wait_until_nothing_is_left(desk)


def test_the_first_two_make_one_template(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        both = [desk.begin("run", "--", "echo", "here") for _ in range(2)]
        done = [finish(process, within_s=120) for process in both]
        assert [each.stdout for each in done] == ["here\n", "here\n"], done
        assert sum("making a template" in each.stderr for each in done) == 1
        assert len(list((tmp_path / ".cache/unhinged/run/templates").glob("builtin-*"))) == 1
        wait_until_nothing_is_left(desk)
