"""Makes a clone a machine of its own (guest floor): what it has in common with its template, and must not, is renewed.

Source: random(4), RNDADDENTROPY and RNDRESEEDCRNG; netdevice(7), SIOCSIFHWADDR; machine-id(5).
"""

import _socket
import fcntl
import os

from . import steps, system, textfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCSIFHWADDR = 0x8924
_ARPHRD_ETHER = 1
_INTERFACES = "/sys/class/net"
_MACHINE_ID, _BUS_MACHINE_ID = "/etc/machine-id", "/var/lib/dbus/machine-id"
_SSH_PIDS = {"dropbear": "/run/dropbear.pid", "openssh": "/run/sshd.pid"}
_DROPBEAR, _OPENSSH = "/etc/init.d/dropbear", "/etc/ssh"
_DROPBEAR_KEYS = ("/etc/dropbear/ed25519", "/data/.unhinged/dropbear/ed25519")
_NETWORK, _DHCP_PIDS = "/etc/init.d/network", "/run/udhcpc.%s.pid"
_JOURNAL_SERVICE, _JOURNALS = "/run/systemd/journal", ("/run/log/journal", "/var/log/journal")
_SIGKILL, _SIGTERM, _SIGCONT, _SIGSTOP = 9, 15, 18, 19
_END_LOOK_S, _END_LOOKS = 0.01, 500
_PROGRAM_S = 600.0


def stir(seed: bytes) -> None:
    """Mixes `seed` into the kernel's pool, and has every random number from now on depend on it."""
    fd = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
    try:
        size = len(seed).to_bytes(4, "little")
        fcntl.ioctl(fd, _RNDADDENTROPY, (len(seed) * 8).to_bytes(4, "little") + size + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def read_machine_id() -> str:
    return system.read_text(_MACHINE_ID, 64).strip()


def set_machine_id(old: str, new: str) -> None:
    """Raises OSError."""
    if len(old) != len(new) or not textfile.write_over(_MACHINE_ID, old + "\n", new + "\n"):
        textfile.replace(_MACHINE_ID, new + "\n", 0o444)
    if os.path.isfile(_BUS_MACHINE_ID) and not os.path.islink(_BUS_MACHINE_ID):
        textfile.replace(_BUS_MACHINE_ID, new + "\n", 0o444)


def set_macs(wanted: "dict[str, str]") -> "list[str]":
    """Gives each interface that has the address at the left the one at the right; returns which these are."""
    changed: "list[str]" = []
    if not wanted:
        return changed
    for name in sorted(os.listdir(_INTERFACES)):
        new = wanted.get(system.read_text("%s/%s/address" % (_INTERFACES, name), 64).strip())
        if new is None:
            continue
        with_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        try:
            address = _ARPHRD_ETHER.to_bytes(2, "little") + bytes.fromhex(new.replace(":", ""))
            fcntl.ioctl(with_socket.fileno(), _SIOCSIFHWADDR, name.encode().ljust(16, b"\0") + address.ljust(24, b"\0"))
        finally:
            with_socket.close()
        changed.append(name)
    return changed


def list_lease_programs(interfaces: "list[str]") -> "list[list[str]]":
    """Ends what holds addresses of the template's; what gets new ones, a program after the other."""
    if os.path.isdir("/run/systemd/netif"):
        return [["networkctl", "reconfigure", name] for name in interfaces]
    programs = []
    for name in interfaces:
        path = _DHCP_PIDS % name
        pid = _read_pid(path)
        if pid:
            # At once: a client that is asked to go gives the lease back, which is the template's.
            _kill(pid, _SIGKILL)
            _remove(path)
            programs.append([_NETWORK, "start"])
    return programs


def hold_ssh() -> str:
    """Stops the SSH server, which knows the template's keys, where it stands: it answers nobody any more.

    It is ended by `renew_ssh`: a process that ends, and who waits for it, have more to do than a clone has time for.

    Returns:
        Which server it is, empty where none runs.
    """
    for server, path in _SSH_PIDS.items():
        pid = _read_pid(path)
        if pid:
            _kill(pid, _SIGSTOP)
            return server
    return ""


def renew_ssh(server: str, comes_back: bool = True) -> "Generator[Any, Any, None]":
    """Ends the server that `hold_ssh` has stopped, removes its keys, and brings it back with keys of its own.

    Raises:
        CallError: What brings it back has failed; the keys are gone.
    """
    pid = _read_pid(_SSH_PIDS[server]) if server else 0
    if pid:
        yield from _end(pid, server)
    if server == "dropbear":
        for path in (_SSH_PIDS[server], *_DROPBEAR_KEYS):
            _remove(path)
        yield from run_all([[_DROPBEAR, "start"]] if comes_back else [])
        return
    programs = []
    # Only those kinds that there were, and the quick ones first: an RSA key takes a minute where a machine is emulated.
    for kind in ("ed25519", "ecdsa", "rsa"):
        path = "%s/ssh_host_%s_key" % (_OPENSSH, kind)
        if os.path.exists(path):
            _remove(path)
            _remove(path + ".pub")
            programs.append(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path])
    if server == "openssh":
        unit = "ssh.service" if os.path.exists("/lib/systemd/system/ssh.service") else "sshd.service"
        programs.append(["systemctl", "restart", unit])
    yield from run_all(programs if comes_back else [])


def _end(pid: int, server: str) -> "Generator[Any, Any, None]":
    """Ends a server that stands still; its port is free then."""
    if server == "dropbear":
        _kill(pid, _SIGKILL)  # it has nothing to put in order
    else:
        _kill(pid, _SIGTERM)  # systemd takes any other end for a failure
        _kill(pid, _SIGCONT)
    for _ in range(_END_LOOKS):
        if not os.path.exists("/proc/%d" % pid):
            return
        yield _END_LOOK_S


def renew_journal(old_id: str, new_id: str) -> "Generator[Any, Any, None]":
    """Gives the journal to the new machine: it looks for it in a directory called by its id.

    Source: systemd-journald.service(8), FILES.
    """
    if old_id == new_id or not os.path.isdir(_JOURNAL_SERVICE):
        return
    for top in _JOURNALS:
        old, new = "%s/%s" % (top, old_id), "%s/%s" % (top, new_id)
        if old_id and os.path.isdir(old) and not os.path.exists(new):
            os.rename(old, new)
    yield from run_all([["systemctl", "restart", "systemd-journald.service"]])


def run_all(programs: "list[list[str]]") -> "Generator[Any, Any, None]":
    """Raises CallError with the words of the first that fails."""
    for argv in programs:
        result = yield steps.Run(argv, timeout_s=_PROGRAM_S)
        steps.check_success(result, " ".join(argv))


def has_network() -> bool:
    """Whether anybody can reach this machine over a network at all."""
    return any(name != "lo" for name in os.listdir(_INTERFACES))


def _read_pid(path: str) -> int:
    text = system.read_text(path, 32).strip()
    return int(text) if text.isdigit() else 0


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # its file was left by one that has ended


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
