"""`exec_command` (guest floor): runs a program, no shell, and answers when it has ended.

What it shares with `exec_start` is here too, because this is what is called most.
"""

from .. import dispatch, parameters, process, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..account import Account
    from ..dispatch import Call
    from ..main import Agent

# Room in an answer for everything that is not output.
_ENVELOPE_BYTES = 1024
_MAX_TIMEOUT_S = 86400


def exec_command(call: "Call", params: "dict[str, Any]") -> None:
    agent = call.agent
    start = prepare(agent, params)

    def done(result: "process.Result") -> None:
        agent.end_command()
        if call.on_cancel is None:
            call.fail(dispatch.CANCELLED, "cancelled", _build_result(result))
        else:
            call.done(_build_result(result))

    stdin = params.get("stdin", "").encode("utf-8", "surrogatepass")
    try:
        child = process.Process(agent.loop, done=done, stdin=stdin, limit=agent.config["exec_output_bytes"], **start)
    except OSError as error:
        raise build_refusal(error) from None
    call.on_cancel = child.kill
    count_command(agent)


def prepare(agent: "Agent", params: "dict[str, Any]") -> "dict[str, Any]":
    """What the command is to be started with, as `process.Child` takes it.

    Raises:
        CallError: There is no such program or user, it is not permitted, or too many run already.
    """
    if agent.commands_running >= agent.config["exec_concurrent"]:
        raise dispatch.CallError(dispatch.BUSY, "%d commands are running already" % agent.commands_running)
    guard, env = agent.guard, params.get("env")
    account = _find_account(guard.choose_user(params.get("user")))
    environment = process.build_environment(env, account)
    argv, cwd = params["argv"], params.get("cwd", "/")
    try:
        program = process.get_program(argv[0], environment, cwd)
    except FileNotFoundError as error:
        raise build_refusal(error) from None
    guard.check_program(program, env)
    return {
        "argv": argv,
        "environment": environment,
        "cwd": cwd,
        "timeout_s": guard.limit_time(params.get("timeout_s", agent.config["exec_timeout_s"])),
        "account": account,
        "program": program,
    }


def count_command(agent: "Agent") -> None:
    agent.commands_running += 1
    agent.counters["commands"] += 1


def _find_account(name: "str | None") -> "Account | None":
    if name is None:
        return None
    from ..account import Account

    try:
        return Account(name)
    except KeyError:
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no user %s" % name) from None


def build_refusal(error: OSError) -> "dispatch.CallError":
    """What a command that could not be started is answered with."""
    from .. import steps  # only when it is needed: most commands start

    return steps.refuse(error)


def build_end(result: "process.Result") -> "dict[str, Any]":
    """How a program has ended."""
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "timed_out": result.timed_out,
        "seconds": round(result.seconds, 6),
    }


def _build_result(result: "process.Result") -> "dict[str, Any]":
    """The result as JSON, cut further where its encoded form would not fit on a line."""
    stdout, stderr, truncated = result.stdout, result.stderr, result.truncated
    while True:
        answer = build_end(result)
        answer["truncated"] = truncated
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


# Source: execve(2), MAX_ARG_STRLEN is 128 KiB.
_check_word = parameters.text(0, 131072)
_check_first = parameters.text(1, 131072)


def _check_argv(value: object) -> "str | None":
    if not isinstance(value, list) or not 1 <= len(value) <= 4096 or _check_first(value[0]):
        return "is not a list of 1 to 4096 strings, the first of them not empty"
    for word in value:
        if _check_word(word) is not None:
            return "holds something that is not a string of at most 131072 characters without zero bytes"
    return None


def _check_env(value: object) -> "str | None":
    if not isinstance(value, dict) or len(value) > 1024:
        return "is not an object of at most 1024 strings"
    for key, text in value.items():
        if not parameters.is_text(key, 1, 256, "=\0") or _check_word(text):
            return "has a name or value that no environment can hold"
    return None


def _check_timeout(value: object) -> "str | None":
    if type(value) in (int, float) and 0 < value <= _MAX_TIMEOUT_S:  # type: ignore[operator]
        return None
    return "is not a number of seconds above 0 and at most %d" % _MAX_TIMEOUT_S


# What every command has.
PARAMETERS: "dict[str, Any]" = {
    "argv": (True, _check_argv),
    "cwd": (False, parameters.path),
    "env": (False, _check_env),
    "user": (False, parameters.text(1, 256)),
    "timeout_s": (False, _check_timeout),
}

METHODS = {"exec_command": (exec_command, {**PARAMETERS, "stdin": (False, parameters.text(0, 4 * 1024 * 1024, ""))})}
