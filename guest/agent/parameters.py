"""Checks of parameters that several families of methods share (guest floor); used in the tables of `handlers/`.

A check takes a value as it came from the host and gives the reason of a refusal, or None.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[object], "str | None"]


def integer(low: int, high: int) -> "Check":
    def check(value: object) -> "str | None":
        if type(value) is int and low <= value <= high:
            return None
        return "is not an integer from %d to %d" % (low, high)

    return check


def number(low: float, high: float) -> "Check":
    def check(value: object) -> "str | None":
        if type(value) in (int, float) and low <= value <= high:  # type: ignore[operator]
            return None
        return "is not a number from %g to %g" % (low, high)

    return check


def boolean(value: object) -> "str | None":
    return None if value is True or value is False else "is neither true nor false"


def choice(*values: str) -> "Check":
    return lambda value: None if value in values else "is none of " + ", ".join(values)


def is_text(value: object, low: int, high: int, forbidden: str = "\0") -> bool:
    """Whether `value` is a string of `low` to `high` characters that UTF-8 can carry, without any `forbidden` one."""
    if not isinstance(value, str) or not low <= len(value) <= high or any(sign in value for sign in forbidden):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False  # a lone surrogate
    return True


def text(low: int, high: int, forbidden: str = "\0") -> "Check":
    def check(value: object) -> "str | None":
        if is_text(value, low, high, forbidden):
            return None
        return "is not a string of %d to %d characters that fits here" % (low, high)

    return check


def path(value: object) -> "str | None":
    # Source: limits.h, PATH_MAX with its zero byte.
    if is_text(value, 1, 4095) and str(value).startswith("/"):
        return None
    return "is not an absolute path"


def matching(allows: "Callable[[Any], bool]", what: str) -> "Check":
    """A check from a test: `allows(value)` is true, or the value is not `what`."""
    return lambda value: None if allows(value) else "is not " + what


def list_of(check: "Check", low: int, high: int) -> "Check":
    def check_list(value: object) -> "str | None":
        if not isinstance(value, list) or not low <= len(value) <= high:
            return "is not a list of %d to %d values" % (low, high)
        for item in value:
            reason = check(item)
            if reason is not None:
                return "holds something that " + reason
        return None

    return check_list
