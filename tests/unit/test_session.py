"""Sessions, over real shells on real terminals of this host; tests/boot/test_session.py has a guest's."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest

from control.errors import EXIT_TIMEOUT, ConfigError, ConsoleError, ControlError, ExecError, WaitTimeout
from control.session import EOF, TIMEOUT, CommandTimeout, ExpectTimeout, Session, SessionEnded, detach_vm, send_input
from control.session.script import ScriptError, play, read_script
from tests.ptys import PtySeat, as_attached

SHELLS = {
    "dash": ["dash", "-i"],
    "bash": ["bash", "--norc", "--noprofile", "-i"],
}
WITHIN_S = 30.0


@contextmanager
def session_at(
    argv: list[str],
    *,
    step: int = 1 << 16,
    disturb: Callable[[bytes], bytes] | None = None,
    size: tuple[int, int] = (24, 80),
    env: dict[str, str] | None = None,
    plain: bool = True,
) -> Iterator[Session]:
    seat = PtySeat(argv, step=step, disturb=disturb, size=size, env=env)
    try:
        with Session(as_attached(seat), timeout=WITHIN_S, plain=plain) as session:
            yield session
    finally:
        seat.close()


@pytest.fixture(params=["dash", "bash"])
def shell(request: pytest.FixtureRequest) -> Iterator[Session]:
    with session_at(SHELLS[request.param]) as session:
        yield session


# -- expect ------------------------------------------------------------------------------------------------------------


def test_patterns_are_found_as_pexpect_finds_them() -> None:
    with session_at(["sh", "-c", "printf 'one two\\nthree'; read x; echo got $x"]) as session:
        assert session.expect(["three", r"t(w)o"]) == 1, "what begins first in the stream counts"
        assert (session.before, session.after, session.match[1], session.match_index) == ("one ", "two", "w", 1)
        assert session.expect_exact(["zzz", "hree"]) == 1
        assert session.before == "\r\nt"
        assert session.expect([TIMEOUT, "never"], timeout=0.01) == 0
        session.sendline("it")
        assert session.expect(["got (\\w+)", EOF]) == 0
        assert session.match[1] == "it"
        assert session.expect(["more", EOF]) == 1


def test_a_pattern_that_never_comes_is_an_error_that_says_what_came() -> None:
    with session_at(["sh", "-c", "echo something else; read x"]) as session:
        with pytest.raises(ExpectTimeout) as caught:
            session.expect("never", timeout=0.2)
        assert isinstance(caught.value, WaitTimeout)
        assert isinstance(caught.value, pexpect.TIMEOUT), "and code written for pexpect goes on working"
        assert caught.value.exit_code == EXIT_TIMEOUT
        assert "'never'" in str(caught.value)
        assert caught.value.evidence == ("something else",)
        session.expect("something")  # what came stays for the next


def test_the_end_of_the_stream_is_an_error_that_says_what_came() -> None:
    with session_at(["sh", "-c", "echo last words"]) as session:
        with pytest.raises(SessionEnded) as caught:
            session.expect("never")
        assert isinstance(caught.value, ConsoleError)
        assert isinstance(caught.value, pexpect.EOF)
        assert caught.value.evidence == ("last words",)
        with pytest.raises(SessionEnded):
            session.read(timeout=1)


def test_a_pattern_that_is_none_is_named() -> None:
    with session_at(["cat"]) as session, pytest.raises(ConfigError, match="no regular expression"):
        session.expect("(")


def test_characters_and_sequences_split_anywhere_are_whole() -> None:
    """Item 12 of the field notes: multi-byte characters split at the edges of chunks, and bracketed paste."""
    said = r"\033[?2004hgr\303\274n\033]0;title\007 \033[1;32m\342\202\254\033[0m\033[?2004l end\n"
    with session_at(["sh", "-c", f"printf '{said}'; read x"], step=1) as session:
        session.expect("grün € end\r\n")
        assert session.before == ""
    with session_at(["sh", "-c", f"printf '{said}'; read x"], step=1, plain=False) as session:
        session.expect_exact("\x1b[1;32m€\x1b[0m")


def test_invalid_text_is_shown_as_such() -> None:
    with session_at(["sh", "-c", r"printf 'a\377b\303(c'; read x"]) as session:
        session.expect("a�b�\\(c")


def test_a_flood_without_a_match_is_bounded() -> None:
    with session_at(["sh", "-c", "yes 0123456789 | head -c 6000000; echo; echo the end; read x"]) as session:
        session.expect("the end")
        assert len(session.before) < 2_000_000
        assert session._engine.dropped > 3_000_000


def test_keys_are_typed() -> None:
    with session_at(
        ["sh", "-c", "trap 'echo interrupted; exit' INT; echo ready; while :; do sleep 0.1; done"]
    ) as session:
        session.expect("ready")
        session.sendcontrol("c")
        session.expect("interrupted")
    with session_at(["cat"]) as session:
        for wrong in ("", "cc", "1", "é"):
            with pytest.raises(ConfigError):
                session.sendcontrol(wrong)
        session.send("a\x1d")
        session.expect_exact("a^]")
        session.sendcontrol("d")
        session.sendcontrol("D")
        session.expect(EOF)


def test_what_came_is_read_once() -> None:
    with session_at(["sh", "-c", "echo one; read x; echo two; read x"]) as session:
        assert session.read(timeout=WITHIN_S).startswith("one")
        assert "one" not in session.read()
        session.sendline()
        session.expect("two")


def test_leaving_twice_is_fine() -> None:
    with session_at(["cat"]) as session:
        detach_vm(session)
        detach_vm(session)
        with pytest.raises(ConsoleError, match="was left"):
            session.read()
        with pytest.raises(ConsoleError, match="was left"):
            send_input(session, "x")


# -- run ---------------------------------------------------------------------------------------------------------------


def test_output_and_exit_codes_come_back(shell: Session) -> None:
    for command, output, code in (
        ("true", "", 0),
        ("false", "", 1),
        ("echo hello; echo there", "hello\nthere\n", 0),
        ("printf 'no end of line'", "no end of line", 0),
        ("(exit 77)", "", 77),
        ("sh -c 'kill -9 $$'", None, 137),
        ('echo "it\'s" \'a "quote"\' `echo and more` $((1+1)) \\\\ !', 'it\'s a "quote" and more 2 \\ !\n', 0),
        ("printf 'ä\\t€\\n'", "ä\t€\n", 0),
        ("echo one >&2", "one\n", 0),
        ("for i in 1 2 3\ndo\n  echo line $i\ndone", "line 1\nline 2\nline 3\n", 0),
        ("cat <<END\n\ttabbed\nEND", "\ttabbed\n", 0),
        (f"echo {'x' * 5000} | wc -c", "5001\n", 0),
    ):
        done = shell.run(command)
        assert done.exit_code == code, (command, done)
        assert output is None or done.output == output, command


def test_what_a_command_does_to_the_shell_lasts(shell: Session) -> None:
    shell.run("cd /usr; kept=something")
    assert shell.run("pwd; echo $kept").output == "/usr\nsomething\n"


def test_a_command_that_is_none_is_told_and_the_shell_lives_on(shell: Session) -> None:
    for wrong in ("if", "echo 'half a quote", "no_such_program", ")"):
        done = shell.run(wrong)
        assert done.exit_code not in (0, None), wrong
        assert done.output
        with pytest.raises(ExecError):
            done.check()
    assert shell.run("echo fine").check().output == "fine\n"


def test_a_line_somebody_left_half_typed_is_taken_away(shell: Session) -> None:
    shell.send("rm -rf /half/typed")
    assert shell.run("echo clean").output == "clean\n"


def test_a_command_that_lasts_too_long_is_interrupted_and_gives_what_it_wrote(shell: Session) -> None:
    with pytest.raises(CommandTimeout) as caught:
        shell.run("echo begun; sleep 100", timeout=1.0)
    assert caught.value.output == "begun\n"
    assert caught.value.stopped
    assert shell.run("echo next").output == "next\n"


def test_a_command_that_reads_gets_what_is_typed_next(shell: Session) -> None:
    with pytest.raises(CommandTimeout):
        shell.run("cat", timeout=0.3)
    assert shell.run("echo next").output == "next\n"


def test_the_prompt_is_there_for_who_expects_it(shell: Session) -> None:
    shell.run("true")
    shell.expect(r"\$ $", timeout=5)
    assert shell.before == ""


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
@pytest.mark.parametrize("columns", [20, 80, 400])
def test_echo_is_no_output_however_it_is_wrapped_and_split(step: int, columns: int) -> None:
    prompt = r"\[\e]0;t\a\e[1;31m\]\u@\h:\w\[\e[0m\]\n> "
    with session_at(SHELLS["bash"], step=step, size=(24, columns), env={"PS1": prompt}) as session:
        session.sendline(f"PS1='{prompt}'; bind 'set enable-bracketed-paste on'")
        for number in range(3):
            command = f"echo {'y' * 150} {number}"
            assert session.run(command).output == f"{'y' * 150} {number}\n"


def test_no_message_of_the_kernel_is_taken_for_output_wherever_it_comes() -> None:
    """Item 12 of the field notes: kernel messages in between, in the middle of our own marks too."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])

    class Kernel:
        """Says something once, at one place of what comes after it was armed."""

        def __init__(self) -> None:
            self.at = -1
            self.heard = b""

        def __call__(self, data: bytes) -> bytes:
            if self.at < 0:
                return data
            begin = data.find(b":b")
            if begin < 0:
                return data
            place = begin - 9 + self.at
            if place > len(data):
                return data
            self.at = -1
            message = b"[%12.6f] usb 1-1: new device ~found~\r\n" % (uptime + 1000)
            return data[:place] + message + data[place:]

    kernel = Kernel()
    with session_at(["dash", "-i"], disturb=kernel) as session:
        session.run("stty -echo")
        session.run("true")
        placed = 0
        for place in range(80):
            kernel.at = place
            done = session.run("printf 'out put'; sleep 0.01; (exit 3)")
            assert (done.output, done.exit_code) == ("out put", 3), place
            placed += kernel.at < 0
            kernel.at = -1
        assert placed > 40, "it was said in the middle of most of it"


def test_old_messages_of_the_kernel_are_output_of_who_shows_them(shell: Session) -> None:
    assert shell.run("echo '[    1.234567] old news'").output == "[    1.234567] old news\n"


def test_where_no_shell_answers_is_told() -> None:
    deaf = ["sh", "-c", "stty -echo; read x; read x; read x"]
    with session_at(deaf) as session, pytest.raises(WaitTimeout, match="a shell to answer"):
        session.run("true", timeout=0.5)
    seat = PtySeat(["sh", "-c", "printf 'host login: '; read x"])
    with Session(as_attached(seat)) as session:
        session.expect("host ")
        with pytest.raises(ConsoleError, match="a login prompt"):
            session.run("true")
        assert seat.typed == b"", "nothing is typed where a name is asked for"
    with session_at(["cat"]) as session, pytest.raises(ConfigError, match="NUL"):
        session.run("a\0b")


def test_a_shell_that_ends_is_told(shell: Session) -> None:
    with pytest.raises(SessionEnded):
        shell.run("exit 3")


# -- login -------------------------------------------------------------------------------------------------------------

GETTY = r"""
while :; do
  printf '\nDebian GNU/Linux 12 host ttyS0\n\nhost login: '
  read -r name || exit 1
  [ -z "$name" ] && continue
  if [ "$name" != nopass ]; then
    printf 'Password: '; stty -echo; read -r word; stty echo; printf '\n'
    sleep 0.2
    if [ "$word" != "s3cret" ]; then printf '\nLogin incorrect\n'; continue; fi
  fi
  printf 'Last login: Fri Nov 27 02:43:14\nLinux host 6.1\n'
  exec bash --norc --noprofile -i
done
"""


def test_a_login_ends_at_a_shell() -> None:
    with session_at(["sh", "-c", GETTY]) as session:
        session.login("root", "s3cret")
        assert session.run("echo in").output == "in\n"
    with session_at(["sh", "-c", GETTY]) as session:
        session.login("nopass")
        assert session.run("echo in").output == "in\n"


def test_a_name_that_getty_was_not_ready_for_is_typed_again() -> None:
    deaf = "printf 'host login: '; sleep 0.5; read -t 0.1 -r lost; " + GETTY
    with session_at(["bash", "-c", deaf]) as session:
        session.login("root", "s3cret")
        assert session.run("echo in").output == "in\n"


def test_a_login_that_is_refused_is_told_with_what_was_said() -> None:
    with session_at(["sh", "-c", GETTY]) as session:
        with pytest.raises(ConsoleError, match="the login of root was refused") as caught:
            session.login("root", "wrong")
        assert "Login incorrect" in caught.value.evidence
        assert "wrong" not in str(caught.value.evidence)
        session.login("root", "s3cret")
        assert session.run("echo in").output == "in\n"


def test_a_login_prompt_that_went_by_is_asked_for_again() -> None:
    with session_at(["sh", "-c", GETTY]) as session:
        session.expect("login: ")
        session.login("root", "s3cret")
    with session_at(["sh", "-c", "read x"]) as session, pytest.raises(WaitTimeout, match="a login prompt"):
        session.login("root", timeout=0.6)


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_does_its_steps_in_order() -> None:
    script = r"""
# a comment
timeout 20
login root $WORD     # from the environment
run "cd /usr"
run pwd
run "false" exit 1
run "exit_with() { return 5; }; exit_with" exit any
line "stty -echo; cat"
expect "cat\r\n"
send "ab\x63"
control j
exact "abc\r\n"
control d
print "all done"
"""
    said: list[str] = []
    with session_at(["sh", "-c", GETTY]) as session:
        session.logfile = io.StringIO()
        play(session, read_script(script, "s"), "s", {"WORD": "s3cret"}, said.append)
        log = session.logfile.getvalue()
    assert said == ["all done"]
    assert "$ pwd\n/usr\n" in log
    assert "s3cret" not in log
    assert "printf" not in log, "what is typed around a command is not shown"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("expct x", "no step 'expct'"),
        ("expect", "takes 1 or more words"),
        ("expect (", "expect: "),
        ("send a b", "takes 1 words"),
        ('send "half', "No closing quotation"),
        ("timeout soon", "timeout: "),
        ("timeout -1", "timeout: "),
        ("resize a b", "resize: "),
        ("run a b", "run: "),
        ("run a exit b", "run: "),
    ],
)
def test_a_line_that_is_no_step_is_named_before_anything_is_typed(line: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_script(f"# first\n{line}\n", "my.script")
    assert str(caught.value).startswith("my.script:2: ")
    assert what in str(caught.value)


def test_a_step_that_fails_names_its_line_and_keeps_its_exit_code() -> None:
    def fail(script: str) -> ControlError:
        with session_at(["dash", "-i"]) as session, pytest.raises(ScriptError) as caught:
            play(session, read_script(script, "s"), "s", dict(os.environ), lambda _: None)
        return caught.value

    error = fail("run true\ntimeout 0.3\nexpect never")
    assert str(error).startswith("s:3: expect: ")
    assert error.exit_code == EXIT_TIMEOUT
    assert fail("run 'exit_with() { return 5; }; exit_with'").exit_code == 5
    assert "not 1" in str(fail("run true exit 1"))
    assert "has no NO_SUCH" in str(fail("login root $NO_SUCH"))
