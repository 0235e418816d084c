"""Programs with streams: what goes in, what comes out, terminals, signals, limits, and what a session leaves behind."""

from __future__ import annotations

import json
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.agentprocess import DATA, END, RESET, AgentProcess, Json, Stream, wait_until

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else: run as root")


@pytest.fixture(autouse=True)
def session(agent: AgentProcess) -> None:
    agent.hello()


def start(agent: AgentProcess, *argv: str, **params: Any) -> Json:
    """Starts a program; streams among the parameters stand for their numbers."""
    params = {key: value.number if isinstance(value, Stream) else value for key, value in params.items()}
    params["argv"] = list(argv)
    return agent.result("exec_start", **params)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_and_errors_come_apart_and_the_end_is_told(agent: AgentProcess) -> None:
    out, err = agent.open_stream(), agent.open_stream()
    job = start(agent, "sh", "-c", "echo one; echo two >&2; exit 7", stdout=out, stderr=err)["job"]
    assert (agent.read_stream(out), agent.read_stream(err)) == (b"one\n", b"two\n")
    result = agent.wait_for_job(job)["result"]
    assert 0 <= result.pop("seconds") < 20
    assert result == {"exit_code": 7, "signal": None, "timed_out": False}


def test_the_end_of_a_job_never_overtakes_the_answer_of_its_batch(agent: AgentProcess) -> None:
    batch = [
        {"jsonrpc": "2.0", "id": "short", "method": "exec_start", "params": {"argv": ["true"]}},
        {"jsonrpc": "2.0", "id": "long", "method": "exec_command", "params": {"argv": ["sleep", "0.3"]}},
        {"jsonrpc": "2.0", "id": "last", "method": "exec_start", "params": {"argv": ["true"]}},
    ]
    agent.send(json.dumps(batch).encode() + b"\n")
    while not isinstance(answers := agent.receive(), list):
        assert answers["method"] == "message", f"this came before the batch was answered: {answers}"
    for job in (answer["result"]["job"] for answer in answers if answer["id"] != "long"):
        assert agent.wait_for_job(job)["result"]["exit_code"] == 0


def test_errors_can_go_where_the_output_goes(agent: AgentProcess) -> None:
    out = agent.open_stream()
    start(agent, "sh", "-c", "echo one; echo two >&2; echo three", stdout=out, stderr="stdout")
    assert agent.read_stream(out) == b"one\ntwo\nthree\n"


def test_a_megabyte_goes_through_and_comes_back(agent: AgentProcess) -> None:
    given, out = agent.open_stream(), agent.open_stream()
    data = os.urandom(3_000_000)
    job = start(agent, "cat", stdin=given, stdout=out)["job"]
    agent.send_data(given, data)
    assert agent.read_stream(out) == data
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0


def test_a_program_that_wants_no_more_input_says_so(agent: AgentProcess) -> None:
    given, out = agent.open_stream(), agent.open_stream()
    job = start(agent, "head", "-c", "3", stdin=given, stdout=out)["job"]
    agent.send_data(given, b"x" * 200_000, end=False)
    assert agent.read_stream(out) == b"xxx"
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0
    agent.wait_until(lambda: given.reset is not None, "the reset of the input")
    assert "no more input" in str(given.reset)


def test_without_streams_it_reads_nothing_and_its_output_goes_nowhere(agent: AgentProcess) -> None:
    job = start(agent, "sh", "-c", "cat; echo gone; exit 4")["job"]
    assert agent.wait_for_job(job)["result"]["exit_code"] == 4


def test_a_reader_that_does_not_read_stops_the_program_and_nobody_else(agent: AgentProcess) -> None:
    out = agent.open_stream()
    out.grants = False
    job = start(agent, "sh", "-c", "head -c 2000000 /dev/zero; echo done >&2", stdout=out)["job"]
    agent.wait_until(lambda: len(out.data) == 262144, "all that the credit allows")
    agent.result("ping")
    other = agent.open_stream()
    start(agent, "head", "-c", "1000000", "/dev/zero", stdout=other)
    assert len(agent.read_stream(other)) == 1_000_000
    assert len(out.data) == 262144 and agent.result("job_list")["jobs"][0]["job"] == job
    out.grants = True
    agent.send_frame(5, out.number, (262144).to_bytes(4, "little"))
    assert len(agent.read_stream(out)) == 2_000_000
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0


def test_an_output_that_nobody_wants_ends_the_program(agent: AgentProcess) -> None:
    out = agent.open_stream()
    job = start(agent, "yes", stdout=out)["job"]
    agent.wait_until(lambda: bool(out.data), "some output")
    agent.send_frame(RESET, out.number, b"enough")
    assert agent.wait_for_job(job)["result"]["signal"] == 13


def test_many_programs_at_once(agent: AgentProcess) -> None:
    running = []
    for number in range(20):
        given, out = agent.open_stream(), agent.open_stream()
        start(agent, "sh", "-c", f"cat; echo {number}", stdin=given, stdout=out)
        running.append((number, given, out))
    for number, given, _ in reversed(running):
        agent.send_data(given, b"%d\n" % number * 10_000)
    for number, _, out in running:
        assert agent.read_stream(out) == b"%d\n" % number * 10_001


def test_what_is_left_behind_holds_the_output_no_longer_than_a_second(agent: AgentProcess) -> None:
    out = agent.open_stream()
    begin = time.monotonic()
    job = start(agent, "sh", "-c", "(echo $BASHPID; exec sleep 60) & echo $!", stdout=out)["job"]
    pid = int(agent.read_stream(out).split()[-1])
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0 and time.monotonic() - begin < 10
    assert is_running(pid)
    os.kill(pid, 9)


def test_what_a_program_wrote_arrives_although_its_reader_is_slow_and_somebody_holds_the_pipe(
    agent: AgentProcess,
) -> None:
    """Longer than one second after its end: the output that is left in the pipe still has to come, and no more."""
    out = agent.open_stream()
    out.grants = False
    script = "(while sleep 0.1; do echo more; done) & echo $! >&2; head -c 330000 /dev/zero"
    err = agent.open_stream()
    job = start(agent, "sh", "-c", script, stdout=out, stderr=err)["job"]
    agent.wait_until(lambda: bool(err.data), "the number of what is left behind")
    end = time.monotonic() + 2
    agent.wait_until(lambda: len(out.data) == 262144, "all that the credit allows")
    while time.monotonic() < end:
        agent.result("ping")
    out.grants = True
    agent.send_frame(5, out.number, (262144).to_bytes(4, "little"))
    assert agent.read_stream(out).count(b"\0") == 330_000
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0
    os.kill(int(err.data.split()[0]), 9)


# Time limits, cancellation, signals


def test_a_time_limit_kills_the_group_and_what_there_was_arrives(agent: AgentProcess) -> None:
    out = agent.open_stream()
    job = start(agent, "sh", "-c", "sleep 60 & echo $!; echo so far; wait", stdout=out, timeout_s=0.5)["job"]
    first, rest = agent.read_stream(out).split(b"\n", 1)
    assert rest == b"so far\n"
    result = agent.wait_for_job(job)["result"]
    assert result["timed_out"] and result["signal"] == 9 and result["exit_code"] is None
    wait_until(lambda: not is_running(int(first)), "the end of the child")


def test_a_job_that_is_cancelled_is_killed_with_its_group(agent: AgentProcess) -> None:
    out = agent.open_stream()
    started = start(agent, "sh", "-c", "sleep 60 & echo $!; wait", stdout=out)
    agent.wait_until(lambda: bool(out.data), "the first output")
    assert agent.result("job_cancel", job=started["job"]) == {}
    error = agent.wait_for_job(started["job"])["error"]
    assert error["code"] == -32006 and error["data"]["signal"] == 9
    wait_until(lambda: not is_running(int(out.data)), "the end of the child")
    assert agent.error("job_cancel", job=started["job"])["code"] == -32002


def test_a_request_that_is_cancelled_is_killed_and_answered_with_its_output(agent: AgentProcess) -> None:
    marker = agent.directory / "began"
    script = f"sleep 60 & echo $!; echo so far; touch {marker}; wait"
    id_ = agent.send_request("exec_command", {"argv": ["sh", "-c", script]})
    wait_until(marker.exists, "the program")
    agent.send(b'{"jsonrpc":"2.0","method":"cancel","params":{"id":%d}}\n' % id_)
    error = agent.wait_for_answer(id_)["error"]
    pid, rest = error["data"]["stdout"].split("\n", 1)
    assert (error["code"], rest, error["data"]["signal"]) == (-32006, "so far\n", 9)
    wait_until(lambda: not is_running(int(pid)), "the end of the child")


def test_a_cancellation_of_what_is_not_there_changes_nothing(agent: AgentProcess) -> None:
    assert agent.result("cancel", id="nobody") == {}
    assert agent.error("cancel", id=1.5)["code"] == -32602
    assert agent.result("ping") == {}


@pytest.mark.parametrize(("signal", "number"), [("TERM", 15), ("SIGUSR1", 10), (9, 9)])
def test_signals(agent: AgentProcess, signal: object, number: int) -> None:
    job = start(agent, "sleep", "60")["job"]
    assert agent.result("exec_signal", job=job, signal=signal) == {}
    assert agent.wait_for_job(job)["result"]["signal"] == number


def test_a_signal_goes_to_the_group_or_to_the_program_alone(agent: AgentProcess) -> None:
    out = agent.open_stream()
    script = "trap 'echo heard' USR1; sh -c 'trap \"exit 0\" USR1; echo ready; while :; do sleep 0.05; done'; echo over"
    started = start(agent, "sh", "-c", script, stdout=out)
    agent.wait_until(lambda: out.data == b"ready\n", "the inner shell")
    agent.result("exec_signal", job=started["job"], signal="USR1", group=False)
    agent.result("exec_signal", job=started["job"], signal="USR1")
    assert agent.read_stream(out) == b"ready\nheard\nover\n"


# Terminals


@pytest.fixture
def terminal(agent: AgentProcess) -> Iterator[tuple[Stream, Stream, int]]:
    given, out = agent.open_stream(), agent.open_stream()
    env = {"PS1": "ready> ", "ENV": "", "HISTFILE": ""}
    pty = {"rows": 24, "columns": 80, "term": "vt100"}
    job = start(agent, "sh", "-i", stdin=given, stdout=out, env=env, pty=pty)["job"]
    wait_for(agent, out, b"ready> ")
    yield given, out, job


def wait_for(agent: AgentProcess, out: Stream, text: bytes) -> None:
    """Waits for `text`, and forgets the output up to its end."""
    agent.wait_until(lambda: text in out.data or out.ended, f"{text!r} on the terminal")
    assert text in out.data, bytes(out.data)
    del out.data[: out.data.index(text) + len(text)]


def type_(agent: AgentProcess, given: Stream, text: bytes) -> None:
    agent.send_frame(DATA, given.number, text)


Terminal = tuple[Stream, Stream, int]


def test_a_terminal_has_its_size_and_hears_of_another(agent: AgentProcess, terminal: Terminal) -> None:
    given, out, job = terminal
    type_(agent, given, b"stty size; echo $TERM; tty\n")
    wait_for(agent, out, b"\r\n24 80\r\nvt100\r\n/dev/pts/")
    wait_for(agent, out, b"ready> ")
    type_(agent, given, b"trap 'stty size' WINCH; echo set$((6 * 7))\n")
    wait_for(agent, out, b"set42")
    agent.result("exec_resize", job=job, rows=50, columns=132)
    type_(agent, given, b"\n")
    wait_for(agent, out, b"50 132")


def test_control_c_ends_what_runs_in_the_foreground_only(agent: AgentProcess, terminal: Terminal) -> None:
    given, out, _ = terminal
    type_(agent, given, b"sh -c 'echo be$1gin; exec sleep 60'\n")
    wait_for(agent, out, b"begin")
    type_(agent, given, b"\x03")
    wait_for(agent, out, b"ready> ")
    type_(agent, given, b"echo still $((6 * 7))\n")
    wait_for(agent, out, b"still 42")


def test_job_control(agent: AgentProcess, terminal: Terminal) -> None:
    given, out, _ = terminal
    type_(agent, given, b"sh -c 'echo be$1gin; exec sleep 60'\n")
    wait_for(agent, out, b"begin")
    type_(agent, given, b"\x1a")
    wait_for(agent, out, b"ready> ")
    type_(agent, given, b"jobs; kill %1; fg; echo over $((6 * 7))\n")
    wait_for(agent, out, b"Stopped")
    wait_for(agent, out, b"over 42")


def test_the_end_of_the_input_ends_the_shell(agent: AgentProcess, terminal: Terminal) -> None:
    given, out, job = terminal
    agent.send_frame(END, given.number)
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0
    agent.read_stream(out)


def test_the_end_of_the_input_in_the_middle_of_a_line(agent: AgentProcess) -> None:
    given, out = agent.open_stream(), agent.open_stream()
    job = start(agent, "cat", stdin=given, stdout=out, pty={"rows": 1, "columns": 1})["job"]
    agent.send_data(given, b"half")
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0
    assert agent.read_stream(out) == b"halfhalf"


def test_all_output_of_a_terminal_arrives(agent: AgentProcess) -> None:
    out = agent.open_stream()
    job = start(agent, "seq", "100000", stdout=out, pty={"rows": 24, "columns": 80})["job"]
    assert agent.read_stream(out) == b"".join(b"%d\r\n" % number for number in range(1, 100_001))
    assert agent.wait_for_job(job)["result"]["exit_code"] == 0


def test_a_terminal_that_nobody_looks_at_any_more_is_hung_up(agent: AgentProcess, terminal: Terminal) -> None:
    _, out, job = terminal
    agent.send_frame(RESET, out.number, b"closed the window")
    ended = agent.wait_for_job(job)["result"]
    assert ended["signal"] == 1 or ended["exit_code"] is not None


# Users


@AS_ROOT
@pytest.mark.parametrize("pty", [None, {"rows": 24, "columns": 80}])
def test_a_program_runs_as_another_user(agent: AgentProcess, pty: Json | None) -> None:
    out = agent.open_stream()
    script = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; pwd; cat /proc/self/status"
    start(agent, "sh", "-c", script, stdout=out, user="nobody", cwd="/usr", pty=pty)
    lines = agent.read_stream(out).decode().splitlines()
    nobody = pwd.getpwnam("nobody")
    groups = os.getgrouplist("nobody", nobody.pw_gid)
    assert lines[:5] == [
        str(nobody.pw_uid),
        str(nobody.pw_gid),
        " ".join(map(str, groups)),
        f"{nobody.pw_dir} nobody nobody",
        "/usr",
    ]
    status = dict(line.split(":\t", 1) for line in lines[5:] if ":\t" in line)
    assert int(status["SigIgn"], 16) & 0x7FFFFFFF == 0 and int(status["SigBlk"], 16) == 0
    assert int(status["CapEff"], 16) == 0


@AS_ROOT
def test_exec_command_runs_as_another_user(agent: AgentProcess) -> None:
    result = agent.result("exec_command", argv=["sh", "-c", "id -un; ls /proc/self/fd"], user="nobody", stdin="x")
    assert result["stdout"].split() == ["nobody", "0", "1", "2", "3"]
    assert agent.error("exec_command", argv=["true"], user="nobody", cwd="/root")["code"] == -32003
    assert agent.error("exec_command", argv=["no-such-program"], user="nobody")["code"] == -32002
    script = agent.directory / "script"
    script.write_text("no interpreter line, not executable")
    assert agent.error("exec_command", argv=[str(script)], user="nobody")["code"] == -32003


# Refusals


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"argv": ["no-such-program"], "stdout": 900}, -32002, "no-such-program"),
        ({"argv": ["true"], "cwd": "/no/such", "stdin": 900, "stdout": 901}, -32002, "/no/such"),
        ({"argv": ["/etc/passwd"], "stdout": 900}, -32003, "/etc/passwd"),
        ({"argv": ["true"], "user": "no-such-user"}, -32002, "no-such-user"),
        ({"argv": ["true"], "stdout": 900, "stderr": 900}, -32602, "open already"),
        ({"argv": ["true"], "stdout": 0}, -32602, "stdout"),
        ({"argv": ["true"], "stdout": True}, -32602, "stdout"),
        ({"argv": ["true"], "stdout": "stdout"}, -32602, "stdout"),
        ({"argv": ["true"], "stdin": 2**32}, -32602, "stdin"),
        ({"argv": ["true"], "pty": {"rows": 24, "columns": 80}}, -32602, "stdout"),
        ({"argv": ["true"], "stdout": 900, "pty": {"rows": 24}}, -32602, "pty"),
        ({"argv": ["true"], "stdout": 900, "pty": {"rows": 0, "columns": 80}}, -32602, "pty"),
        ({"argv": ["true"], "stdout": 900, "stderr": 901, "pty": {"rows": 9, "columns": 9}}, -32602, "stderr"),
        ({"argv": ["true"], "stdout": 900, "pty": {"rows": 9, "columns": 9, "term": "a b"}}, -32602, "pty"),
    ],
)
def test_refused_starts_leave_nothing_behind(agent: AgentProcess, params: Json, code: int, words: str) -> None:
    agent.result("exec_command", argv=["true"])
    agent.result("ping")  # by now the agent has opened all that it opens for itself
    descriptors = Path(f"/proc/{agent.process.pid}/fd")
    before = sorted(descriptors.iterdir())
    error = agent.error("exec_start", **params)
    assert error["code"] == code and words in error["message"]
    assert agent.result("job_list") == {"jobs": []}
    assert sorted(descriptors.iterdir()) == before
    for number in (900, 901):
        agent.streams[number] = Stream(number)
    start(agent, "true", stdin=900, stdout=901)
    assert agent.read_stream(agent.streams[901]) == b""


@pytest.mark.parametrize("signal", ["NOTHING", "SIG_BLOCK", "SIG", "", 0, 65, True, None])
def test_refused_signals(agent: AgentProcess, signal: object) -> None:
    job = start(agent, "sleep", "60")["job"]
    assert agent.error("exec_signal", job=job, signal=signal)["code"] == -32602
    assert agent.error("exec_signal", job=job + 1, signal=9)["code"] == -32002
    assert agent.error("exec_resize", job=job, rows=1, columns=1)["code"] == -32009
    agent.result("job_cancel", job=job)


def test_no_more_than_the_configured_number_at_once(agent: AgentProcess) -> None:
    agent.command("command", "set configuration", {"key": "exec_concurrent", "value": 2})
    jobs = [start(agent, "sleep", "60")["job"] for _ in range(2)]
    assert agent.error("exec_start", argv=["true"])["code"] == -32004
    assert agent.error("exec_command", argv=["true"])["code"] == -32004
    agent.result("job_cancel", job=jobs[0])
    agent.wait_for_job(jobs[0])
    assert agent.result("exec_command", argv=["true"])["exit_code"] == 0
    agent.result("job_cancel", job=jobs[1])
