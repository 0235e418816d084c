"""`exec_command` (guest floor): runs a program, no shell, and answers when it has ended."""

from .. import dispatch, process, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call

# Room in an answer for everything that is not output.
_ENVELOPE_BYTES = 1024
_MAX_TIMEOUT_S = 86400


def exec_command(call: "Call", params: "dict[str, Any]") -> None:
    agent = call.agent
    if agent.commands_running >= agent.config["exec_concurrent"]:
        raise dispatch.CallError(dispatch.BUSY, "%d commands are running already" % agent.commands_running)
    timeout_s = params.get("timeout_s", agent.config["exec_timeout_s"])

    def done(result: "process.Result") -> None:
        agent.commands_running -= 1
        call.done(_build_result(result))

    try:
        process.Process(
            agent.loop,
            params["argv"],
            done,
            environment=process.build_environment(params.get("env")),
            cwd=params.get("cwd", "/"),
            stdin=params.get("stdin", "").encode("utf-8", "surrogatepass"),
            timeout_s=timeout_s,
            limit=agent.config["exec_output_bytes"],
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise dispatch.CallError(dispatch.NOT_FOUND, _sentence(error)) from None
    except PermissionError as error:
        raise dispatch.CallError(dispatch.NOT_PERMITTED, _sentence(error)) from None
    except OSError as error:
        raise dispatch.CallError(dispatch.FAILED, _sentence(error)) from None
    agent.commands_running += 1
    agent.counters["commands"] += 1


def _sentence(error: OSError) -> str:
    return "%s: %s" % (error.filename, error.strerror) if error.filename else str(error.strerror)


def _build_result(result: "process.Result") -> "dict[str, Any]":
    """The result as JSON, cut further where its encoded form would not fit on a line."""
    stdout, stderr, truncated = result.stdout, result.stderr, result.truncated
    while True:
        answer = {
            "exit_code": result.exit_code,
            "signal": result.signal,
            "truncated": truncated,
            "timed_out": result.timed_out,
            "seconds": round(result.seconds, 6),
        }
        _add_output(answer, "stdout", stdout, truncated)
        _add_output(answer, "stderr", stderr, truncated)
        if len(stdout) + len(stderr) < 65536 or len(wire.encode(answer)) + _ENVELOPE_BYTES <= wire.MAX_ANSWER_BYTES:
            return answer
        # A control character takes six bytes in JSON, and bytes that are not text go out twice.
        truncated = True
        if len(stdout) >= len(stderr):
            stdout = stdout[: len(stdout) // 2]
        else:
            stderr = stderr[: len(stderr) // 2]


def _add_output(answer: "dict[str, Any]", name: str, data: bytes, truncated: bool) -> None:
    """Adds an output as text; bytes that are not UTF-8 appear as U+FFFD there and whole in NAME_base64."""
    try:
        answer[name] = data.decode("utf-8")
        return
    except UnicodeDecodeError as error:
        if truncated and error.reason == "unexpected end of data":
            answer[name] = data[: error.start].decode("utf-8")  # the cut went through a character
            return
    import binascii

    answer[name] = data.decode("utf-8", "replace")
    answer[name + "_base64"] = binascii.b2a_base64(data, newline=False).decode("ascii")


def _check_argv(value: object) -> "str | None":
    if not isinstance(value, list) or not 1 <= len(value) <= 4096 or not value[0]:
        return "is not a list of 1 to 4096 strings, the first of them not empty"
    for word in value:
        if _check_word(word) is not None:
            return "holds something that is not a string of at most 131072 characters without zero bytes"
    return None


def _check_word(value: object) -> "str | None":
    # Source: execve(2), MAX_ARG_STRLEN is 128 KiB.
    if not isinstance(value, str) or len(value) > 131072 or "\0" in value or not _is_encodable(value):
        return "is not a string of at most 131072 characters without zero bytes"
    return None


def _check_cwd(value: object) -> "str | None":
    if _check_word(value) is not None or not str(value).startswith("/") or len(str(value)) > 4096:
        return "is not an absolute path"
    return None


def _check_env(value: object) -> "str | None":
    if not isinstance(value, dict) or len(value) > 1024:
        return "is not an object of at most 1024 strings"
    for key, text in value.items():
        if not 1 <= len(key) <= 256 or "=" in key or _check_word(key) or _check_word(text):
            return "has a name or value that no environment can hold"
    return None


def _check_stdin(value: object) -> "str | None":
    return None if isinstance(value, str) and _is_encodable(value) else "is not a string"


def _check_timeout(value: object) -> "str | None":
    if type(value) in (int, float) and 0 < value <= _MAX_TIMEOUT_S:  # type: ignore[operator]
        return None
    return "is not a number of seconds above 0 and at most %d" % _MAX_TIMEOUT_S


def _is_encodable(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


METHODS = {
    "exec_command": (
        exec_command,
        {
            "argv": (True, _check_argv),
            "cwd": (False, _check_cwd),
            "env": (False, _check_env),
            "stdin": (False, _check_stdin),
            "timeout_s": (False, _check_timeout),
        },
    )
}
