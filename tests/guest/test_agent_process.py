"""The agent as a process on a socketpair: every method, every refusal, and what a hostile or clumsy host can do."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.guest.agentprocess import AGENT, DEADLINE_S, AgentProcess, build_message, wait_until

# Methods


@pytest.mark.parametrize("method", ["ping", "get_agent_info", "get_system_info"])
def test_results_have_the_form_of_their_schema(agent: AgentProcess, method: str) -> None:
    agent.result(method)  # which holds it against its schema


def test_system_info_is_that_of_this_machine(agent: AgentProcess) -> None:
    seen = agent.result("get_system_info")
    assert (seen["hostname"], seen["kernel"], seen["cpus"]) == (os.uname().nodename, os.uname().release, os.cpu_count())
    assert seen["memory_total_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (
            {"argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]},
            {"exit_code": 3, "stdout": "out\n", "stderr": "err\n"},
        ),
        ({"argv": ["cat"], "stdin": "grün"}, {"exit_code": 0, "stdout": "grün"}),
        ({"argv": ["cat"]}, {"exit_code": 0, "stdout": ""}),
        ({"argv": ["pwd"], "cwd": "/usr"}, {"stdout": "/usr\n"}),
        ({"argv": ["sh", "-c", "echo $ONE"], "env": {"ONE": "two words"}}, {"stdout": "two words\n"}),
        ({"argv": ["echo", "$HOME", "*", ";", "id"]}, {"stdout": "$HOME * ; id\n"}),
        ({"argv": ["sh", "-c", "kill -TERM $$"]}, {"exit_code": None, "signal": 15}),
        (
            {"argv": ["printf", r"a\377b"]},
            {"stdout": "a\ufffdb", "stdout_base64": base64.b64encode(b"a\xffb").decode()},
        ),
        ({"argv": ["printf", r"\0\001"]}, {"stdout": "\0\x01"}),
        ({"argv": ["head", "-c", "3"], "stdin": "x" * 3_000_000}, {"exit_code": 0, "stdout": "xxx"}),
    ],
)
def test_exec(agent: AgentProcess, params: dict[str, Any], wanted: dict[str, Any]) -> None:
    result = agent.result("exec_command", **params)
    assert {key: result[key] for key in wanted} == wanted
    assert not result["truncated"] and not result["timed_out"]


def test_exec_gives_the_program_its_signals_back(agent: AgentProcess) -> None:
    status = agent.result("exec_command", argv=["cat", "/proc/self/status"])["stdout"]
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    # Signals 32 and 33 belong to the C library, which inherits them from whoever started this test.
    assert int(fields["SigIgn"], 16) & 0x7FFFFFFF == 0 and int(fields["SigBlk"], 16) == 0


def test_exec_leaves_the_program_no_descriptor_of_the_agent(agent: AgentProcess) -> None:
    assert agent.result("exec_command", argv=["ls", "/proc/self/fd"])["stdout"].split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("command", ["yes", "yes | tr y '\\001'", "cat /dev/urandom", "yes ☃"])
def test_exec_output_is_bounded_and_the_program_goes_on(agent: AgentProcess, command: str) -> None:
    result = agent.result("exec_command", argv=["sh", "-c", f"({command}) | head -c 20000000; echo done >&2"])
    assert result["truncated"] and result["exit_code"] == 0 and result["stderr"] == "done\n"
    assert len(result["stdout"]) >= 50_000
    assert agent.read_memory_bytes() < 40e6


def test_exec_timeout_kills_grandchildren_and_keeps_the_output(agent: AgentProcess) -> None:
    script = "echo $$; sleep 1000 & echo $!; (sleep 1001 & echo $!; wait); wait"
    result = agent.result("exec_command", argv=["sh", "-c", script], timeout_s=0.5)
    assert result["timed_out"] and result["signal"] == 9 and result["exit_code"] is None
    assert 0.4 < result["seconds"] < DEADLINE_S
    pids = [int(word) for word in result["stdout"].split()]
    assert len(pids) == 3
    wait_until(lambda: not any(is_running(pid) for pid in pids), "the end of the grandchildren")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_exec_answers_although_a_daemon_holds_its_output(agent: AgentProcess) -> None:
    begin = time.monotonic()
    result = agent.result("exec_command", argv=["sh", "-c", "sleep 30 & echo $!"])
    assert result["exit_code"] == 0 and time.monotonic() - begin < 10
    os.kill(int(result["stdout"]), 9)


def test_many_commands_at_once_hold_up_nobody(agent: AgentProcess) -> None:
    ids = [agent.send_request("exec_command", {"argv": ["sleep", "1"]}) for _ in range(32)]
    begin = time.monotonic()
    assert agent.error("exec_command", argv=["true"])["code"] == -32004
    for _ in range(100):
        agent.result("ping")
    assert time.monotonic() - begin < 0.9
    answers = {agent.receive()["id"] for _ in ids}
    assert answers == set(ids)
    assert agent.result("exec_command", argv=["true"])["exit_code"] == 0


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"argv": ["no-such-program"]}, -32002, "no-such-program"),
        ({"argv": ["/no/such"]}, -32002, "/no/such"),
        ({"argv": ["true"], "cwd": "/no/such"}, -32002, "/no/such"),
        ({"argv": ["/etc/passwd"]}, -32003, "/etc/passwd"),
        ({}, -32602, "argv is missing"),
        ({"argv": []}, -32602, "argv"),
        ({"argv": "true"}, -32602, "argv"),
        ({"argv": [""]}, -32602, "argv"),
        ({"argv": ["a\0b"]}, -32602, "argv"),
        ({"argv": ["\ud800"]}, -32602, "argv"),
        ({"argv": ["true"], "cwd": "relative"}, -32602, "cwd"),
        ({"argv": ["true"], "env": {"A=B": "c"}}, -32602, "env"),
        ({"argv": ["true"], "env": {"A": 1}}, -32602, "env"),
        ({"argv": ["true"], "timeout_s": 0}, -32602, "timeout_s"),
        ({"argv": ["true"], "timeout_s": True}, -32602, "timeout_s"),
        ({"argv": ["true"], "shell": True}, -32602, "shell"),
        ({"argv": ["true", *["x" * 131_000] * 30]}, -32005, "too long"),
    ],
)
def test_exec_refusals(agent: AgentProcess, params: dict[str, Any], code: int, words: str) -> None:
    error = agent.error("exec_command", **params)
    assert error["code"] == code and words in error["message"]
    assert agent.result("exec_command", argv=["true"])["exit_code"] == 0


@pytest.mark.parametrize(("method", "file"), [("shutdown", "powered-off"), ("reboot", "rebooted")])
def test_power_is_answered_first_and_then_happens(agent: AgentProcess, method: str, file: str) -> None:
    assert agent.result(method) == {}
    wait_until((agent.directory / file).exists, method)


def test_power_without_a_program_is_an_error(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, {"poweroff_command": ["no-such-program"]})
    assert agent.error("shutdown")["code"] == -32002
    assert agent.command("command", "shutdown")["data"]["details"]["code"] == "not-found"
    assert agent.close() == 0


# JSON-RPC


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b'{"id":' + b"9" * 100_000 + b"}", -32700),
        (b"null", -32600),
        (b"[]", -32600),
        (b'{"jsonrpc":"1.0","method":"ping","id":null}', -32600),
        (b'{"jsonrpc":"2.0","method":7,"id":null}', -32600),
        (b'{"jsonrpc":"2.0","method":"ping","id":{}}', -32600),
        (b'{"jsonrpc":"2.0","method":"ping","id":1.5}', -32600),
        (b'{"jsonrpc":"2.0","method":"ping","id":true}', -32600),
        (b'{"jsonrpc":"2.0","method":"ping","id":"\\ud800"}', -32600),
        (b'{"jsonrpc":"2.0","method":"ping","id":null,"more":1}', -32600),
        (b'{"jsonrpc":"2.0","method":"nothing","id":null}', -32601),
        (b'{"jsonrpc":"2.0","method":"__class__","id":null}', -32601),
        (b'{"jsonrpc":"2.0","method":"ping","params":[1],"id":null}', -32602),
    ],
)
def test_refused_lines(agent: AgentProcess, line: bytes, code: int) -> None:
    agent.send(line + b"\n")
    answer = agent.wait_for_answer(None)
    assert answer["error"]["code"] == code
    assert agent.result("ping") == {}


def test_an_unknown_parameter_is_named(agent: AgentProcess) -> None:
    error = agent.error("ping", nonsense=1)
    assert error["code"] == -32602 and error["data"] == {"key": "nonsense"} and "nonsense" in error["message"]


def test_a_line_over_the_limit_is_discarded_to_its_end(agent: AgentProcess) -> None:
    agent.send(b'{"x":"' + b"y" * (6 * 1024 * 1024) + b'"}\n')
    assert agent.wait_for_answer(None)["error"]["code"] == -32001
    assert agent.result("ping") == {}
    assert agent.read_memory_bytes() < 40e6


def test_half_a_line_then_a_new_start(agent: AgentProcess) -> None:
    agent.send(b'{"jsonrpc":"2.0","method":"exec_command","params":{"argv":["touch","/')
    agent.send(b'\n{"jsonrpc":"2.0","id":"fresh-1","method":"get_agent_info"}\n')
    assert agent.wait_for_answer(None)["error"]["code"] == -32700
    assert agent.wait_for_answer("fresh-1")["result"]["protocol"] == 1


def test_batches(agent: AgentProcess) -> None:
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "exec_command", "params": {"argv": ["sh", "-c", "sleep 0.2; echo late"]}},
        {"jsonrpc": "2.0", "method": "ping"},
        {"jsonrpc": "2.0", "id": 2, "method": "ping"},
        7,
    ]
    agent.send(json.dumps(batch).encode() + b"\n")
    while not isinstance(answers := agent.receive(), list):
        pass
    by_id = {answer["id"]: answer for answer in answers}
    assert set(by_id) == {1, 2, None}
    assert by_id[1]["result"]["stdout"] == "late\n" and by_id[None]["error"]["code"] == -32600


def test_a_batch_of_notifications_has_no_answer_and_a_large_one_fits_on_a_line(agent: AgentProcess) -> None:
    agent.send(b'[{"jsonrpc":"2.0","method":"ping"}]\n')
    one = {"jsonrpc": "2.0", "method": "exec_command", "params": {"argv": ["head", "-c", "200000", "/dev/zero"]}}
    agent.send(json.dumps([{**one, "id": number} for number in range(8)]).encode() + b"\n")
    while not isinstance(answers := agent.receive(), list):
        pass
    assert len(answers) == 8
    assert {answer.get("error", {}).get("code") for answer in answers} == {None, -32005}
    agent.send(json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "ping"}] * 1001).encode() + b"\n")
    assert agent.wait_for_answer(None)["error"]["code"] == -32600


def test_a_notification_is_never_answered(agent: AgentProcess) -> None:
    agent.send(b'{"jsonrpc":"2.0","method":"nothing"}\n{"jsonrpc":"2.0","method":"ping","params":{"a":1}}\n')
    agent.result("ping")
    assert all(line.get("method") == "message" for line in agent.unasked)


def test_a_flood_that_nobody_reads_the_answers_of(agent: AgentProcess) -> None:
    """The agent stops reading, so the host's own writes stop; later every request is answered."""
    request = b'{"jsonrpc":"2.0","id":"%07d' + b"x" * 100 + b'","method":"ping"}\n'
    agent.socket.setblocking(False)
    stream = b"".join(request % number for number in range(100_000))
    sent = 0
    end = time.monotonic() + 3
    while sent < len(stream) and time.monotonic() < end:
        try:
            sent += agent.socket.send(stream[sent : sent + 65536])
        except BlockingIOError:
            if agent.read_memory_bytes() > 60e6:
                break
            time.sleep(0.01)
    assert sent < len(stream), "the agent took everything in without being read from"
    assert agent.read_memory_bytes() < 60e6
    agent.socket.settimeout(DEADLINE_S)
    whole = stream[:sent].count(b"\n")
    answered = 0
    while answered < whole:
        answer = agent.receive()
        answered += "method" not in answer
    agent.send(b"\n")
    assert agent.result("ping") == {}


def test_random_garbage_and_damaged_requests_never_end_the_agent(agent: AgentProcess) -> None:
    chance = random.Random(7)
    good = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "exec_command", "params": {"argv": ["true"]}}).encode()
    for _ in range(300):
        line = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            line[chance.randrange(len(line))] = chance.randrange(256)
        agent.send(bytes(line) + b"\n" + chance.randbytes(chance.randrange(50)) + b"\n")
    agent.send(b"\n" + json.dumps({"jsonrpc": "2.0", "id": "after", "method": "ping"}).encode() + b"\n")
    assert agent.wait_for_answer("after")["result"] == {}


# Messages


def test_ready_goes_to_the_console_and_the_port_under_one_id(agent: AgentProcess) -> None:
    ready = agent.wait_for_message(type="status", message="agent ready")
    wait_until(lambda: b"agent ready" in agent.console.read_bytes(), "the console line")
    lines = [json.loads(line) for line in agent.console.read_bytes().splitlines() if line]
    assert ready in lines


def test_diagnostics(agent: AgentProcess) -> None:
    answer = agent.command("command", "diagnostics")
    assert answer["type"] == "status" and answer["data"]["message"] == "diagnostics done"


@pytest.mark.parametrize(
    ("type_", "message", "details", "code"),
    [
        ("command", "start service", {"name": "no-such-service"}, "not-found"),
        ("command", "start service", {"name": "../../bin/true"}, "bad-details"),
        ("command", "stop service", {}, "bad-details"),
        ("command", "diagnostics", {"more": 1}, "bad-details"),
        ("command", "dance", {}, "unknown-command"),
        ("graphics", "diagnostics", {}, "unknown-command"),
        ("command", "set configuration", {"key": "nothing", "value": 1}, "bad-details"),
        ("command", "set configuration", {"key": "heartbeat_s", "value": "often"}, "bad-details"),
        ("command", "set configuration", {"key": "poweroff_command", "value": ["rm"]}, "not-permitted"),
        ("graphics", "set mode", {"width": 0, "height": 1}, "bad-details"),
        ("graphics", "show picture", {"format": "ppm"}, "bad-details"),
        ("graphics", "show picture", {"format": "gif", "data": ""}, "bad-details"),
        ("graphics", "show picture", {"format": "ppm", "path": "/no/such"}, "not-found"),
    ],
)
def test_refused_commands(agent: AgentProcess, type_: str, message: str, details: dict[str, Any], code: str) -> None:
    answer = agent.command(type_, message, details)
    assert answer["type"] == "error" and answer["data"]["details"]["code"] == code


def test_heartbeats_start_when_they_are_configured(agent: AgentProcess) -> None:
    answer = agent.command("command", "set configuration", {"key": "heartbeat_s", "value": 0.05})
    assert answer["data"] == {"message": "set configuration done", "details": {"key": "heartbeat_s", "value": 0.05}}
    beats = [agent.wait_for_message(type="heartbeat") for _ in range(3)]
    assert [beat["data"]["details"]["sequence"] for beat in beats] == [1, 2, 3]
    assert b"alive" not in agent.console.read_bytes()


@pytest.mark.parametrize("fault", [{"direction": "vm-to-host"}, {"type": "gossip"}, {"extra": 1}, {"timestamp": "now"}])
def test_a_message_with_a_fault_is_answered_with_an_error_message(agent: AgentProcess, fault: dict[str, Any]) -> None:
    envelope = {**build_message("command", "diagnostics", {}, "bad-1"), **fault}
    agent.send(json.dumps({"jsonrpc": "2.0", "method": "message", "params": envelope}).encode() + b"\n")
    answer = agent.wait_for_message(in_reply_to="bad-1")
    assert answer["type"] == "error"
    assert answer["data"]["details"]["code"] == ("bad-direction" if "direction" in fault else "bad-message")


@pytest.mark.parametrize(("verb", "file"), [("shutdown", "powered-off"), ("restart", "rebooted")])
def test_power_by_message(agent: AgentProcess, verb: str, file: str) -> None:
    assert agent.command("command", verb)["data"]["message"] == f"{verb} done"
    wait_until((agent.directory / file).exists, verb)


def is_read(fifo: Path) -> bool:
    """Whether somebody has it open for reading. Source: fifo(7), ENXIO."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_events_of_the_guests_own_scripts(agent: AgentProcess) -> None:
    agent.result("ping")
    fifo = agent.directory / "events"
    wait_until(lambda: is_read(fifo), "a reader of the FIFO: what is written without one is lost")
    for line in ("service web started", "boot finished", "nonsense"):
        subprocess.run(["sh", "-c", f"echo '{line}' 1<>{fifo}"], check=True, timeout=DEADLINE_S)
    assert agent.wait_for_message(message="service web started")["data"]["details"] == {
        "service": "web",
        "state": "started",
    }
    agent.wait_for_message(message="boot finished")
    assert agent.wait_for_message(type="error")["data"]["details"]["code"] == "bad-message"


# Configuration and start


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"heartbeat": 1}', "heartbeat is not a key"),
        ('{"heartbeat_s": "5"}', "heartbeat_s is not a number"),
        ('{"exec_concurrent": true}', "exec_concurrent is not an integer"),
        ('{"share": "relative"}', "share is neither"),
        ("[1]", "does not hold an object"),
        ("{", "is not JSON"),
    ],
)
def test_a_bad_configuration_stops_the_agent_with_one_line(tmp_path: Path, text: str, words: str) -> None:
    config, console = tmp_path / "config.json", tmp_path / "console"
    config.write_text(text)
    console.touch()
    ended = run_agent("--config", str(config), "--console", str(console), "--fd", "0")
    assert ended.returncode == 2
    assert words in ended.stderr and str(config) in ended.stderr and ended.stderr.count("\n") == 1
    assert console.read_text() == ended.stderr


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--fd"], ["--fd", "x"], ["--config", "/no/such", "--fd", "0"]])
def test_wrong_arguments_are_usage_errors(arguments: list[str]) -> None:
    ended = run_agent("--console", "/no/such/console", *arguments)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "Traceback" not in ended.stderr


def test_a_port_that_is_not_there_is_a_clear_error() -> None:
    ended = run_agent("--console", "/no/such/console", "--port", "/no/such/port")
    assert ended.returncode == 1 and "/no/such/port" in ended.stderr and "Traceback" not in ended.stderr


def run_agent(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-S", "-B", str(AGENT / "__main__.py"), *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL, check=False
    )


def test_the_agent_starts_from_its_directory_too(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, start="")
    assert agent.result("ping") == {}
    assert agent.close() == 0


def test_start_imports_nothing_slow() -> None:
    """What is imported before the first answer decides how early the guest answers."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import guest.agent.main, guest.agent.handlers.agent;"
        "print(*sorted(sys.modules))"
    )
    argv = [sys.executable, "-I", "-S", "-B", "-c", script, str(AGENT.parents[1])]
    modules = set(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout.split())
    slow = {"re", "json", "enum", "typing", "socket", "subprocess", "asyncio", "collections", "functools", "pathlib"}
    slow |= {"logging", "tempfile", "argparse", "dataclasses", "contextlib", "signal", "struct", "ctypes", "__future__"}
    assert not modules & slow
    assert len({name for name in modules if name.startswith("guest.agent.")}) <= 15


def test_a_terminal_as_the_port(tmp_path: Path) -> None:
    """A pseudo-terminal stands for a serial line: nothing is echoed, nothing is translated."""
    ours, theirs = os.openpty()
    config = tmp_path / "config.json"
    config.write_text('{"console": null, "share": null, "events": null, "heartbeat_s": 0}')
    argv = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        str(AGENT / "__main__.py"),
        "--config",
        str(config),
        "--port",
        os.ttyname(theirs),
    ]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        with os.fdopen(ours, "r+b", buffering=0) as terminal:
            while b"agent ready" not in terminal.readline():
                pass
            os.write(ours, b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
            assert json.loads(terminal.readline()) == {"jsonrpc": "2.0", "id": 1, "result": {}}
            os.close(theirs)
        assert process.stderr is not None
        assert (process.wait(DEADLINE_S), process.stderr.read()) == (0, b"")
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
