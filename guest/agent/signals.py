"""Names of signals (guest floor), as in signal(7) but without `SIG`; used by every method that sends one."""

import _signal  # type: ignore[import-not-found] # `signal` itself imports `enum`, which is slow


def is_signal(name: object) -> bool:
    return isinstance(name, str) and name.isalnum() and name.isupper() and _find(name) is not None


def find_signal(name: str) -> int:
    """The number of a signal that `is_signal`."""
    number = _find(name)
    if number is None:
        raise ValueError("there is no signal %s" % name)
    return number


def _find(name: str) -> "int | None":
    number = getattr(_signal, "SIG" + name, None)
    # SIG_DFL and the like are no signals, and RTMAX is a limit as well as one.
    return number if type(number) is int and 1 <= number < _signal.NSIG else None
