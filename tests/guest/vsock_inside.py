"""Runs inside the guest, given to its Python by `test_agent_port`: an agent on vsock, and who may talk to it."""

import socket
import subprocess
import time
from pathlib import Path

PORT = 5000
LOCAL = 1


def connect(own_port: int | None) -> socket.socket:
    """Connects to the agent, from a port of one's own choice if there is one."""
    end = time.monotonic() + 30
    while True:
        connection = socket.socket(40, socket.SOCK_STREAM)
        connection.settimeout(30)
        try:
            if own_port is not None:
                connection.bind((0xFFFFFFFF, own_port))
            connection.connect((LOCAL, PORT))
        except OSError:
            connection.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.05)  # the agent has not begun to listen
        else:
            return connection


def ask(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line + b"\n")
    data = b""
    while b'"id":1' not in data:
        more = connection.recv(65536)
        assert more, "the agent closed the connection"
        data += more
    return data


config = Path("/tmp/vsock.json")
config.write_text('{"console": null, "share": null, "events": null, "heartbeat_s": 0}')
start = ["python3", "-I", "-S", "/usr/lib/unhinged/agent/__main__.pyc"]
agent = subprocess.Popen([*start, "--vsock", str(PORT), "--config", str(config)])
try:
    first = connect(900)
    info = ask(first, b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"session":"%s"}}' % (b"0" * 32))
    assert b'"transport":"vsock"' in info and b'"streams"' in info, info
    stranger = connect(None)
    assert stranger.recv(1) == b"", "a port that takes no privileges was let in"
    assert b'"result"' in ask(first, b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    second = connect(901)
    assert b'"result"' in ask(second, b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    while first.recv(65536):
        pass  # what was still on its way to the one whose place was taken
    second.close()
    third = connect(902)
    assert b'"session":null' in ask(third, b'{"jsonrpc":"2.0","id":1,"method":"get_agent_info"}')
    print("well")
finally:
    agent.kill()
    agent.wait()
