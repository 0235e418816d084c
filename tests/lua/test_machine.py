"""One Lua interpreter: values both ways, what it prints, what goes wrong in it, interrupting it, its terminal."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.errors import ConfigError, ConsoleError
from control.lua import LuaCancelled, LuaObject, LuaProcessError, LuaTimeout, LuaVM
from control.lua.values import decode, encode
from control.session import SessionEnded

WITHIN_S = 30.0
FOREVER = "while true do end"


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[LuaVM]:
    with LuaVM("one", "lua5.4", tmp_path) as vm:
        yield vm


def test_it_keeps_its_state(vm: LuaVM) -> None:
    vm.execute_string("count = 1; function next_one() count = count + 1; return count end")
    assert vm.execute_string("next_one()").value == 2
    assert vm.execute_string("return next_one(), count").values == (3, 3)
    assert vm.executions == 3


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("6 * 7", (42,)),
        ("return 1, 2.5, 'ä', true, nil, false", (1, 2.5, "ä", True, None, False)),
        ("return {1, 2, {a = {b = 3}}}", ([1, 2, {"a": {"b": 3}}],)),
        ("return {}", ({},)),
        ("return {[1] = 'a', [3] = 'c'}", ({1: "a", 3: "c"},)),
        ("return math.mininteger, math.maxinteger, 2^53", (-(2**63), 2**63 - 1, float(2**53))),
        ("return 1/0", (math.inf,)),
        ("return '\\xff\\0'", ("\udcff\0",)),
        ("local x = 1", ()),
        ("-- nothing", ()),
        ("return ...", ()),
    ],
)
def test_results_are_values(vm: LuaVM, code: str, values: tuple[Any, ...]) -> None:
    assert vm.execute_string(code).values == values


def test_what_cannot_leave_is_named(vm: LuaVM) -> None:
    result = vm.execute_string("return print, coroutine.create(print), io.stdout")
    assert all(isinstance(value, LuaObject) for value in result.values)
    assert [value.text.split(":")[0].split(" ")[0] for value in result.values] == ["function", "thread", "file"]
    for code, words in (
        ("local t = {}; t.t = t; return t", "holds itself"),
        ("return {[{}] = 1}", "a table as a key"),
    ):
        with pytest.raises(LuaProcessError, match=words):
            vm.execute_string(code)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20)
)
KEYS = st.one_of(st.text(max_size=8), st.integers(-100, 100))
NESTED = st.recursive(
    PLAIN.filter(lambda value: value is not None),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(st.one_of(PLAIN, NESTED), max_size=5))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(vm: LuaVM, values: list[Any]) -> None:
    text = [value for value in values if not _has_surrogates(value)]
    assert decode(encode(text)) == text
    assert list(vm.execute_string("return ...", *text).values) == text


def _has_surrogates(value: Any) -> bool:
    try:
        repr(value).encode()
        return "\\ud" in repr(value)
    except UnicodeEncodeError:
        return True


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_any_bytes_are_values_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode(data)


@pytest.mark.parametrize("value", [2**63, object(), {None: 1}, {(1, 2): 3}])
def test_what_lua_has_not_is_refused_and_nothing_runs(vm: LuaVM, value: Any) -> None:
    with pytest.raises(ConfigError):
        vm.execute_string("ran = true", value)
    assert vm.execute_string("ran").value is None


def test_what_is_printed_belongs_to_its_execution(vm: LuaVM) -> None:
    assert vm.execute_string("print('one', 2); io.write('no line end')").output == "one\t2\nno line end"
    assert vm.execute_string("return 1").output == ""
    vm.execute_string("io.stderr:write('to stderr\\n')")
    result = vm.execute_string("for i = 1, 200000 do print('line ' .. i) end")
    assert len(result.output) == 1024 * 1024
    assert result.dropped == sum(len(f"line {i}\n") for i in range(1, 200001)) - 1024 * 1024
    assert result.output.endswith("line 200000\n")
    binary = vm.execute_string("io.write(('\\0\\1\\r\\n\\27[0m'):rep(10))")
    assert binary.output == "\0\1\r\n\x1b[0m" * 10


def test_errors_have_their_traceback_and_their_value(vm: LuaVM) -> None:
    with pytest.raises(LuaProcessError, match="string:1: oh no") as caught:
        vm.execute_string("local function deep() error('oh no') end deep() return 1")
    assert "stack traceback:" in caught.value.seen
    assert any("deep" in line for line in caught.value.seen)
    with pytest.raises(LuaProcessError) as caught:
        vm.execute_string("error({code = 7})")
    assert caught.value.value == {"code": 7}
    with pytest.raises(LuaProcessError, match="syntax error near 'x'"):
        vm.execute_string("x x")
    with pytest.raises(LuaProcessError, match="stack overflow"):
        vm.execute_string("local function f() return 1 + f() end return f()")
    assert vm.execute_string("return 'alive'").value == "alive"


def test_a_file_is_run(vm: LuaVM, tmp_path: Path) -> None:
    file = tmp_path / "script.lua"
    file.write_text("#!/usr/bin/lua5.4\nlocal a, b = ...\nif a == 0 then\n  error('zero')\nend\nreturn a + b\n")
    assert vm.execute_file(file, 2, 3).value == 5
    with pytest.raises(LuaProcessError, match=r"script\.lua:4: zero"):
        vm.execute_file(file, 0, 3)
    with pytest.raises(ConfigError, match="cannot be read"):
        vm.execute_file(tmp_path / "none.lua")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "code", [FOREVER, "local f = coroutine.wrap(function() while true do end end) print('in') f()"]
)
def test_an_endless_loop_is_interrupted_and_the_state_is_kept(vm: LuaVM, code: str, times: int) -> None:
    vm.execute_string("kept = 5")
    dead = 0
    for _ in range(times):
        with pytest.raises(LuaTimeout, match=r"longer than 0\.2 s") as caught:
            vm.execute_string(code, timeout=0.2)
        if caught.value.is_dead:  # a coroutine does not see the interpreter's own way to be interrupted
            dead += 1
            assert code != FOREVER
            break
    if not dead:
        assert vm.execute_string("kept").value == 5
    else:
        with pytest.raises(LuaProcessError, match="has ended: it was killed, because it could not be interrupted"):
            vm.execute_string("kept")


def test_code_that_cannot_be_interrupted_is_killed(vm: LuaVM) -> None:
    with pytest.raises(LuaTimeout) as caught:
        vm.execute_string("while true do pcall(function() while true do end end) end", timeout=0.2)
    assert caught.value.is_dead
    assert not vm.is_alive


def test_an_interrupt_that_comes_too_late_harms_nothing(vm: LuaVM) -> None:
    """The code ends at the very moment it is interrupted, again and again."""
    ended = interrupted = 0
    for i in range(60):
        other = LuaVM(f"late-{i}", "lua5.4", vm._wish.parent)
        with other:
            try:
                wait = "local e = os.clock() + 0.0200 while os.clock() < e do end return 'ended'"
                result = other.execute_string(wait, timeout=0.0185 + i * 0.00005)
                assert result.value == "ended"
                ended += 1
            except LuaTimeout as error:
                assert not error.is_dead
                interrupted += 1
            for number in range(3):
                assert other.execute_string("return ...", number).value == number
    assert ended + interrupted == 60


def test_one_that_has_only_just_been_started_outlives_an_interrupt(vm: LuaVM) -> None:
    for i in range(5):
        with LuaVM(f"young-{i}", "lua5.4", vm._wish.parent) as other:
            with pytest.raises(LuaTimeout) as caught:
                other.execute_string(FOREVER, timeout=0.0)
            assert not caught.value.is_dead
            assert other.execute_string("return 5").value == 5


def test_an_interrupt_in_the_middle_of_an_answer_loses_none_of_it(vm: LuaVM) -> None:
    """The first of them is a signal, the others are asked for with a file; an answer that is late is an answer."""
    size = 4 * 1024 * 1024
    started = time.monotonic()
    vm.execute_string("return string.rep('x', ...)", size)
    whole_s = time.monotonic() - started
    came = 0
    for part in range(40):
        try:
            result = vm.execute_string("return string.rep('x', ...)", size, timeout=whole_s * part / 30)
            came += len(result.value) == size
        except LuaTimeout as error:
            assert not error.is_dead
        assert vm.execute_string("local n = 0 for i = 1, 3000000 do n = n + 1 end return n").value == 3000000
    assert came


def test_it_is_cancelled_from_another_thread(vm: LuaVM) -> None:
    vm.execute_string("kept = 5")
    for _ in range(3):
        timer = threading.Timer(0.2, vm.cancel)
        timer.start()
        with pytest.raises(LuaCancelled, match="one was cancelled"):
            vm.execute_string(FOREVER)
        timer.join()
    assert not vm.cancel()
    assert vm.execute_string("kept").value == 5


@pytest.mark.parametrize(
    ("code", "how"),
    [("os.exit(3)", "ended with exit code 3"), ("io.popen('kill -SEGV $PPID'):read('a')", "ended by SIGSEGV")],
)
def test_its_end_is_told_and_stays(vm: LuaVM, code: str, how: str) -> None:
    with pytest.raises(LuaProcessError, match=how):
        vm.execute_string(f"io.write('last words\\n') io.flush() {code} return 1")
    assert not vm.is_alive
    with pytest.raises(LuaProcessError, match=how):
        vm.execute_string("1")


def test_one_that_is_killed_is_told(vm: LuaVM) -> None:
    timer = threading.Timer(0.2, os.kill, (vm.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(LuaProcessError, match="ended by SIGKILL"):
        vm.execute_string(FOREVER)
    timer.join()


def test_memory_is_bounded(tmp_path: Path) -> None:
    with LuaVM("small", "lua5.4", tmp_path, memory_bytes=64 * 1024 * 1024) as vm:
        with pytest.raises(LuaProcessError, match="not enough memory"):
            vm.execute_string("return ('x'):rep(100 * 1024 * 1024)")
        assert vm.execute_string("return 1").value == 1


@pytest.mark.parametrize("hangup", [signal.SIG_DFL, signal.SIG_IGN])
def test_it_ends_with_whoever_made_it(tmp_path: Path, hangup: signal.Handlers) -> None:
    """Also in an endless loop, and when that was started by nohup: its terminal goes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGHUP, hangup)
            vm = LuaVM("orphan", "lua5.4", tmp_path)
            os.write(writing, str(vm.pid).encode())
            vm.execute_string(FOREVER)
        finally:
            os._exit(1)
    os.close(writing)
    pid = int(os.read(reading, 20))
    os.close(reading)
    time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + WITHIN_S
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_somebody_sits_at_its_terminal(vm: LuaVM) -> None:
    vm.execute_string("x = 5")
    with vm.attach(timeout=WITHIN_S) as session:
        session.expect_exact("> ")
        session.sendline("x + 1")
        session.expect_exact("6\r\n> ")
        session.sendline("for i = 1, 2 do")
        session.expect_exact(">> ")
        session.sendline("print('number', i) end")
        session.expect_exact("number\t2\r\n> ")
        session.sendline("error('oh no')")
        session.expect_exact("stdin:1: oh no")
        session.sendline("y = io.read()")
        session.sendline("typed for it")
        session.expect_exact("> ")
        for _ in range(3):
            session.sendline(FOREVER)
            time.sleep(0.05)
            session.sendcontrol("c")
            session.expect_exact("interrupted!")
            session.expect_exact("> ")
        session.resize(33, 77)
        with pytest.raises(LuaTimeout, match="busy"):
            vm.execute_string("1", timeout=0.05)
        session.send("half a li")
    assert vm.execute_string("return x, y").values == (5, "typed for it")
    assert vm.execute_string("print('here')").output == "here\n"


def test_a_conversation_ends_whatever_runs(vm: LuaVM) -> None:
    vm.execute_string("kept = 5")
    for typed in (FOREVER, "io.read()", "for i = 1, 1e9 do print(i) end"):
        session = vm.attach(timeout=WITHIN_S)
        session.sendline(typed)
        time.sleep(0.05)
        session.close()
        session.close()
        with pytest.raises(ConsoleError):
            session.read()
        assert vm.execute_string("kept").value == 5
    session = vm.attach(timeout=WITHIN_S)
    session.sendline("os.exit(4)")
    with pytest.raises(SessionEnded, match="exit code 4"):
        session.expect_exact("never")
    session.close()
    assert not vm.is_alive
