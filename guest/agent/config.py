"""The agent's configuration (guest floor): an optional file, checked key by key.

A file with a fault stops the agent with one clear line: a wrong setting is never quietly replaced by a default.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATH = "/etc/unhinged-agent/config.json"
_MAX_BYTES = 65536


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what is expected."""


def _number(low: float, high: float) -> "Callable[[object], str | None]":
    def check(value: object) -> "str | None":
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            return "is not a number from %g to %g" % (low, high)
        return None

    return check


def _integer(low: int, high: int) -> "Callable[[object], str | None]":
    def check(value: object) -> "str | None":
        if type(value) is not int or not low <= value <= high:
            return "is not an integer from %d to %d" % (low, high)
        return None

    return check


def _path_or_null(value: object) -> "str | None":
    if value is None or (isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) < 4096):
        return None
    return "is neither an absolute path nor null"


def _argv_or_null(value: object) -> "str | None":
    if value is None:
        return None
    if isinstance(value, list) and value and all(isinstance(word, str) and "\0" not in word for word in value):
        return None
    return "is neither a list of strings (program and arguments) nor null"


# key: (default, check, whether `set configuration` may change it while the agent runs)
KEYS = {
    # seconds between heartbeats; 0 for none
    "heartbeat_s": (5, _number(0, 3600), True),
    # where message lines go; null for nowhere
    "console": ("/dev/console", _path_or_null, False),
    # where the shared directory is, or will be, mounted; null for none
    "share": ("/mnt/host", _path_or_null, False),
    # a FIFO into which services of the guest write `service NAME STATE` and `boot finished`; null for none
    "events": ("/run/unhinged-agent/events", _path_or_null, False),
    # how much of each output of a command is kept
    "exec_output_bytes": (262144, _integer(0, 524288), True),
    # how many commands run at the same time
    "exec_concurrent": (32, _integer(1, 256), True),
    # the time limit of a command whose caller gave none; 0 for none
    "exec_timeout_s": (0, _number(0, 86400), True),
    # how to switch off and restart; null for the way that fits process 1
    "poweroff_command": (None, _argv_or_null, False),
    "reboot_command": (None, _argv_or_null, False),
}


def build_default() -> "dict[str, Any]":
    return {key: default for key, (default, _, _) in KEYS.items()}


def find_fault(key: str, value: object) -> "str | None":
    """What is wrong with `value` for `key`; None when nothing is."""
    if key not in KEYS:
        return "is not a key of the configuration"
    return KEYS[key][1](value)


def load(path: str, required: bool = False) -> "dict[str, Any]":
    """Reads the file over the defaults; a file that is not there changes nothing unless it is `required`.

    Raises:
        ConfigError: It cannot be read, is not an object of JSON, or a key or value is wrong.
    """
    config = build_default()
    try:
        with open(path, "rb", 0) as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError("%s does not exist" % path) from None
        return config
    except OSError as error:
        raise ConfigError("%s cannot be read: %s" % (path, error.strerror)) from None
    from . import wire

    if len(data) > _MAX_BYTES:
        raise ConfigError("%s has more than %d bytes" % (path, _MAX_BYTES))
    try:
        values = wire.decode(b" ".join(data.splitlines()))
    except wire.WireError as error:
        raise ConfigError("%s: %s" % (path, error)) from None
    if not isinstance(values, dict):
        raise ConfigError("%s does not hold an object" % path)
    for key, value in values.items():
        fault = find_fault(key, value)
        if fault is not None:
            raise ConfigError("%s: %s %s" % (path, key[:64], fault))
    config.update(values)
    return config
