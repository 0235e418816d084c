"""Machines on a network of their own (floor 6): addresses and names for `vm_lan`."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError
from control.testing.machine import GuestAssertion, Machine

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
"""Any would do: nothing but these machines is on it."""

MACHINES_MAX = 32

# The card whose address QEMU did not choose is that of the LAN: those of other networks keep QEMU's.
_SET_UP = """
for card in /sys/class/net/*; do
	read -r mac < "$card/address"
	case "$mac" in 52:54:00:12:34:*) continue ;; 52:54:00:*) ;; *) continue ;; esac
	ip link set "${card##*/}" up && ip addr add "$0/$1" dev "${card##*/}" && exit
	exit 1
done
echo "there is no card of a LAN" >&2
exit 1
"""


def make_lan(make: Callable[..., Machine], names: Sequence[str | int], wish: Mapping[str, Any]) -> list[Machine]:
    """Make machines that reach each other by their names, and nobody else.

    Args:
        make: As `vm_factory`.
        names: Of the machines, or how many; two when nothing is said.
        wish: As the marker's; `net` is what they have beside the LAN.

    Raises:
        ConfigError: It names none, or too many.
        ControlError, GuestAssertion: One cannot be made.
    """
    labels = _read_names(names)
    beside = wish.get("net", "restricted")
    others = [beside] if isinstance(beside, str) else list(beside)
    networks = [*(other for other in others if other != "none"), f"lan:test-{os.getpid()}-{secrets.token_hex(4)}"]
    machines = []
    for label, address in zip(labels, NETWORK.hosts(), strict=False):
        machine = make(name=label, **{**wish, "net": networks})
        outcome = machine.execute(["sh", "-c", _SET_UP, str(address), str(NETWORK.prefixlen)])
        if outcome.exit_code != 0:
            raise GuestAssertion(f"{label} has no address on the network of the test:\n{outcome.describe()}")
        machine.address = address
        machines.append(machine)
    hosts = "".join(f"{machine.address} {machine.label}\n" for machine in machines)
    for machine in machines:
        machine.succeed("cat >> /etc/hosts", stdin=hosts)
        machine.history.clear()
    return machines


def _read_names(names: Sequence[str | int]) -> list[str]:
    if not names:
        names = (2,)
    if len(names) == 1 and isinstance(names[0], int):
        labels = [f"vm{number + 1}" for number in range(names[0])]
    else:
        labels = [str(name) for name in names]
    if not 1 <= len(labels) <= MACHINES_MAX or len(set(labels)) < len(labels):
        raise ConfigError(f"a network has 1 to {MACHINES_MAX} machines with different names", key="vm_lan")
    return labels
