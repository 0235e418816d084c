"""The schemas of `schemas/`, compiled for checking (floor 1): the only module that imports `jsonschema_rs`."""

from __future__ import annotations

import functools
from typing import Any

from control.paths import SCHEMAS

# Nothing is checked while a VM starts, so the library, which takes 10 ms to load, comes with the first check.


@functools.cache
def get_validator(name: str) -> Any:
    """Return the compiled schema `schemas/NAME.json`, for example `message`.

    The library's type for a validator is private, hence `Any`; it has `is_valid(value)` and `iter_errors(value)`.
    """
    import jsonschema_rs

    return jsonschema_rs.validator_for((SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))


def explain(name: str, value: object) -> str:
    """Say in one line where and how `value` does not fit the schema; empty when it does.

    It looks for the first fault only: to list all that a hostile value has can take many seconds.
    """
    import jsonschema_rs

    try:
        if get_validator(name).is_valid(value):
            return ""
        get_validator(name).validate(value)
    except jsonschema_rs.ValidationError as error:
        where = ".".join(str(part) for part in error.instance_path)
        what = str(error.message)
        return f"{where}: {what[:300]}" if where else what[:300]
    except ValueError as error:
        # What Python's reader takes and no JSON is: half of a surrogate pair; or it nests deeper than the library goes.
        return f"it cannot be checked: {str(error)[:300]}"
    return ""
