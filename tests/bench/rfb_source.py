"""A stand-in for a VNC server at a UNIX socket, run as a program: floods, or says back, as the first byte asks.

python3 rfb_source.py SOCKET
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

FLOOD, ECHO = b"F", b"E"
BLOCK = os.urandom(1 << 16) * 4


def main() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(128)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        if connection.recv(1) == FLOOD:
            while True:
                connection.sendall(BLOCK)
        while data := connection.recv(65536):
            connection.sendall(data)


if __name__ == "__main__":
    main()
