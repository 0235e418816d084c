"""Run in a guest: does at the port of SPICE's agent what spice-vdagent does, with no desktop behind it.

`vdagent.py give TEXT` offers a text, as a program does that has copied it, and ends once somebody has taken it.
`vdagent.py take` waits until somebody outside offers a text, and prints it.

Source: spice-protocol, spice/vd_agent.h.
"""

import struct
import sys
from io import FileIO

CLIPBOARD, CAPABILITIES, GRAB, REQUEST = 4, 6, 7, 8
CAN_DEMAND, CAN_SELECT = 5, 6
CLIENT_PORT, PROTOCOL = 1, 1
SELECTION = bytes(4)
TEXT = 1


def main() -> None:
    with FileIO("/dev/virtio-ports/com.redhat.spice.0", "r+") as port:
        announce(port, asks=True)
        while True:
            kind, data = receive(port)
            if kind == CAPABILITIES:
                # The viewer's: it hears what is said to it from now on, and may have missed what was said before.
                announce(port, asks=False)
                if sys.argv[1] == "give":
                    send(port, GRAB, SELECTION + struct.pack("<I", TEXT))
            if kind == REQUEST and sys.argv[1] == "give":
                send(port, CLIPBOARD, SELECTION + struct.pack("<I", TEXT) + sys.argv[2].encode())
                return
            if kind == GRAB and sys.argv[1] == "take":
                send(port, REQUEST, SELECTION + struct.pack("<I", TEXT))
            if kind == CLIPBOARD:
                print(data[8:].decode())
                return


def announce(port: FileIO, *, asks: bool) -> None:
    send(port, CAPABILITIES, struct.pack("<II", asks, 1 << CAN_DEMAND | 1 << CAN_SELECT))


def send(port: FileIO, kind: int, data: bytes) -> None:
    message = struct.pack("<IIQI", PROTOCOL, kind, 0, len(data)) + data
    port.write(struct.pack("<II", CLIENT_PORT, len(message)) + message)


def receive(port: FileIO) -> tuple[int, bytes]:
    """The next message; one may come in several chunks."""
    message = b""
    while len(message) < 20 or len(message) < 20 + struct.unpack_from("<I", message, 16)[0]:
        _, size = struct.unpack("<II", read(port, 8))
        message += read(port, size)
    return struct.unpack_from("<I", message, 4)[0], message[20:]


def read(port: FileIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += port.read(size - len(data)) or b""
    return data


main()
