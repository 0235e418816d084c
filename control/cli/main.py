"""The way into `unhinged` (floor 6): options, the choice of the command, the exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from control.cli.desk import Desk, show_error
from control.errors import EXIT_ERROR, EXIT_INTERRUPTED, ConfigError, ControlError

_SPLIT_AT_DASHES = ("exec", "ssh", "gdb", "run")
"""Commands whose last words are a command line of their own."""

WAITS = ("running", "boot", "agent", "ssh")
CONSOLES = ("ttyS0", "hvc0", "shell", "console")
LOGS = ("serial", "hvc0", "qemu", "stdout", "messages", "supervisor")


class _Parser(argparse.ArgumentParser):
    """Raises what is wrong with a command line, so that it is shown as every other error is."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"{self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; each command names the module and the function that does it."""
    common = _Parser(add_help=False)
    common.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help="the configuration file")
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="say on stderr what is done")
    parser = _Parser(prog="unhinged", description="Virtual machines kept in a file, driven by name.", parents=[common])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, does: str, summary: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, parents=[common])
        sub.set_defaults(does=does)
        return sub

    def add_one(name: str, does: str, summary: str) -> argparse.ArgumentParser:
        sub = add(name, does, summary)
        sub.add_argument("name", metavar="NAME")
        return sub

    def add_many(name: str, does: str, summary: str) -> argparse.ArgumentParser:
        sub = add(name, does, summary)
        sub.add_argument("names", metavar="NAME", nargs="*")
        sub.add_argument("--all", action="store_true", help="all VMs of the file")
        return sub

    add("list", "show:list_vms", "list the VMs of the file, and which run")
    add_many("status", "show:status", "say how VMs are doing")
    for name, summary in (
        ("start", "start VMs, and those they depend on"),
        ("restart", "stop VMs and start them again"),
    ):
        sub = add_many(name, "start:start" if name == "start" else "life:restart", summary)
        sub.add_argument("--wait", choices=WAITS, default="running", help="what to wait for")
        sub.add_argument("--wait-timeout", type=_seconds, default=300.0, metavar="SECONDS")
        if name == "restart":
            sub.add_argument("--timeout", type=_seconds, default=20.0, metavar="SECONDS", help="before they are killed")
        else:
            sub.add_argument("--paused", action="store_true", help="do not let the guests run yet")
    sub = add_many("stop", "life:stop", "shut VMs down, and kill those that do not go")
    sub.add_argument("--timeout", type=_seconds, default=20.0, metavar="SECONDS", help="before they are killed (20)")
    add_many("kill", "life:kill", "end VMs at once, as pulling the plug would")
    add_many("pause", "life:pause", "let VMs stand still")
    add_many("resume", "life:resume", "let VMs run on")
    sub = add_one("wait", "life:wait", "wait until a VM is that far")
    sub.add_argument("--for", dest="what", choices=(*WAITS, "stopped"), default="boot")
    sub.add_argument("--timeout", type=_seconds, default=300.0, metavar="SECONDS")

    sub = add_one("exec", "guest:exec_", "run a program in the guest: exec NAME -- PROGRAM ARGUMENT…")
    sub.add_argument("--cwd")
    sub.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    sub.add_argument("--user")
    sub.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="kill it after so long")
    sub.add_argument("-t", "--tty", action="store_true", help="give it a terminal, which is yours")
    sub.add_argument("-n", "--no-stdin", action="store_true", help="give it nothing to read")
    sub.add_argument("--checkpoint", action="store_true", help="so that undo brings the VM back to before it")
    sub.add_argument("words", nargs="*", metavar="PROGRAM …")
    sub = add_one("ssh", "ssh:ssh", "log in with ssh, or run a command: ssh NAME -- COMMAND…")
    sub.add_argument("--via", choices=("agent", "ssh"), help="which way (ssh where it answers)")
    sub.add_argument("words", nargs="*", metavar="COMMAND …")
    for name, summary in (("put", "copy files and trees into the guest"), ("get", "copy files and trees out of it")):
        sub = add_one(name, f"guest:{name}", summary)
        sub.add_argument("paths", nargs="+", metavar="PATH", help="sources, then where to")
        sub.add_argument("--via", choices=("agent", "ssh"), help="which way (the agent where the guest has it)")
    sub = add_one("send", "guest:send", "send the guest a message and print its answer; or type on a console")
    sub.add_argument("text")
    sub.add_argument("--details", default="{}", metavar="JSON", help="of the message")
    sub.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS")
    sub.add_argument("--console", metavar="CONSOLE", help="type the text and a line end on this console")
    sub.add_argument("--no-enter", action="store_true", help="leave out the line end")
    sub.add_argument("--steal", action="store_true", help="take the keyboard from whoever has it")
    sub.add_argument("--until", metavar="REGEX", help="then print what the console says, until this")
    sub = add_one("read", "script:read", "print what a console has said, or says until --until")
    sub.add_argument(
        "--console", default="", metavar="CONSOLE", help="ttyS0, hvc0, shell, or console (the first it has)"
    )
    sub.add_argument("--from", dest="start", type=_position, metavar="WHERE", help="start, prompt, now, or a position")
    sub.add_argument(
        "--until", metavar="REGEX", help="wait until it has said this (from its last line, the prompt, on)"
    )
    sub.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS")
    sub = add_one("expect", "script:expect", "run a small script at a console: expect NAME SCRIPT")
    sub.add_argument("script", metavar="SCRIPT", help="a file, or - for stdin (docs/scripting.md)")
    sub.add_argument(
        "--console", default="", metavar="CONSOLE", help="ttyS0, hvc0, shell, or console (the first it has)"
    )
    sub.add_argument("--from", dest="start", choices=("prompt", "start", "now"), default="prompt")
    sub.add_argument("--steal", action="store_true", help="take the keyboard from whoever has it")
    sub.add_argument("--quiet", action="store_true", help="only print what the script prints")
    sub.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="of each step")

    sub = add_one("console", "console:console", "be at a console; Ctrl-] opens a prompt, and leaves")
    _add_console_options(sub)

    for name, summary in (
        ("logs", "show what the VM has written"),
        ("serial", "be at the VM's console; without a terminal, or with -n or -f, show the end of it"),
        ("stdout", "show the end of what QEMU itself wrote to stdout"),
        ("stderr", "show the end of what QEMU itself wrote to stderr"),
        ("messages", "show the messages between host and guest"),
    ):
        sub = add_one(name, f"logs:{name}", summary)
        sub.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
        sub.add_argument("-n", "--lines", type=_count, metavar="N", help="only the last lines")
        if name == "logs":
            sub.add_argument("--log", choices=LOGS, default="serial")
    sub = add_one("cast", "recording:cast", "write a console's recording as asciinema plays it: cast NAME [FILE]")
    sub.add_argument("file", metavar="FILE", nargs="?", default="-", help="where to (stdout)")
    _add_recording_options(sub)
    sub = add_one("replay", "recording:replay", "play a console's recording in this terminal; q ends it")
    sub.add_argument("--speed", type=_speed, default=1.0, metavar="N", help="so many times as fast; 0: at once")
    sub.add_argument("--idle-limit", type=_seconds, metavar="SECONDS", help="cut silences that are longer to this")
    _add_recording_options(sub)
    sub = add_one("qmp", "machine:qmp", "run a QMP command")
    sub.add_argument("qmp_command", metavar="COMMAND")
    sub.add_argument("arguments", nargs="?", default="{}", metavar="JSON")
    sub = add_one("monitor", "machine:monitor", "run a line of QEMU's monitor")
    sub.add_argument("words", nargs="+", metavar="WORD")
    sub = add_one("forward", "machine:forward", "change the ports that lead to a running VM: forward NAME add 8080:80")
    sub.add_argument("action", choices=("add", "remove", "list"))
    sub.add_argument("forward", nargs="?", metavar="SPEC", help="as in the configuration: 8080:80, auto:80, 53:53/udp")
    sub = add_one("line", "machine:line", "send a serial machine a break, or set DTR or RTS: line NAME dtr pulse")
    sub.add_argument("line", choices=("break", "dtr", "rts"))
    sub.add_argument("how", nargs="?", choices=("on", "off", "pulse"), help="of dtr and rts (pulse)")
    sub.add_argument("--seconds", type=_seconds, metavar="SECONDS", help="how long a break or a pulse lasts (0.25)")
    sub = add_one("screenshot", "screen:screenshot", "save a picture of the guest's screen")
    sub.add_argument("path", metavar="FILE.png")
    sub.add_argument("--every", type=_seconds, metavar="SECONDS", help="again and again, as FILE-0001.png and so on")
    sub.add_argument("--until", metavar="REGEX", help="until the screen shows this text")
    sub.add_argument("--count", type=_count, metavar="N", help="so many at most")
    sub.add_argument("--timeout", type=_seconds, default=300.0, metavar="SECONDS", help="give up after so long (300)")
    sub = add_one("type", "screen:type_", "type a text on the guest's keyboard, as a person at its screen would")
    sub.add_argument("text")
    sub.add_argument("--enter", action="store_true", help="and press Return")
    sub = add_one("key", "screen:key", "press keys together: key NAME ctrl-alt-f2")
    sub.add_argument("keys", nargs="+", metavar="KEYS", help="one after the other")
    sub = add_one("mouse", "screen:mouse", "put the guest's pointer at a place of its screen")
    sub.add_argument("x", type=_count, metavar="X", help="pixels from the left")
    sub.add_argument("y", type=_count, metavar="Y", help="pixels from the top")
    sub.add_argument("--click", nargs="?", const="left", choices=("left", "middle", "right"))
    sub = add_one("wait-text", "screen:wait_text", "wait until the guest's screen shows a text")
    sub.add_argument("pattern", metavar="REGEX")
    sub.add_argument("--timeout", type=_seconds, default=60.0, metavar="SECONDS", help="give up after so long (60)")
    sub = add_one("view", "view:view", "open the guest's screen in a native viewer")
    sub.add_argument("--kind", choices=("spice", "vnc"), help="the protocol (SPICE where the VM has it)")
    sub.add_argument("--file", metavar="FILE", help="where the connection file is written")
    sub.add_argument("--no-run", action="store_true", help="only write it")
    sub.add_argument("--full-screen", action="store_true")
    sub = add_one("tunnel", "view:tunnel", "print the ssh command that brings the guest's screen to another host")
    sub.add_argument("host", metavar="[USER@]HOST", help="this host, as ssh there knows it")
    sub.add_argument("--kind", choices=("spice", "vnc"), help="the protocol (SPICE where the VM has it)")
    sub.add_argument("--port", type=_port, metavar="PORT", help="there (5900, 5930 for SPICE)")
    sub.add_argument("--run", action="store_true", help="run it, until Ctrl-C")

    sub = add("snapshot", "snapshot:snapshot", "keep a VM as it is, memory and disks together, and go back to that")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, tag, summary in (
        ("save", "?", "keep the VM as it is now, under TAG (the time)"),
        ("restore", "?", "put it back to TAG (the newest); one that does not run is started"),
        ("delete", None, "forget TAG"),
        ("list", "", "list the snapshots of a VM"),
        ("diff", "?", "say which files of the guest have changed since TAG (the newest)"),
    ):
        sub = actions.add_parser(action, help=summary, description=summary, parents=[common])
        sub.add_argument("name", metavar="NAME")
        if tag != "":
            sub.add_argument("tag", metavar="TAG", nargs=tag, default="")
        if action == "save":
            sub.add_argument("--live", action="store_true", help="let its guest run on while its memory is written")

    sub = add("run", "run:run", "run a command in a machine that is thrown away after it: run -- PROGRAM ARGUMENT…")
    sub.add_argument(
        "--image", metavar="NAME|FILE", default="builtin", help="builtin, debian; a kernel, an ISO, a qcow2 (builtin)"
    )
    sub.add_argument("--fresh", action="store_true", help="boot a machine, instead of cloning one that has booted")
    given = sub.add_mutually_exclusive_group()
    given.add_argument("--mount", metavar="DIR[:ro]", help="a directory of this host, at /work, where PROGRAM runs")
    given.add_argument("--sync", action="store_true", help="give it a copy of the current one, and show what changed")
    sub.add_argument("--apply", action="store_true", help="with --sync: change it here, too")
    sub.add_argument("--keep", action="store_true", help="do not throw it away, and say how it is entered")
    sub.add_argument("--net", choices=("none", "user"), default="none", help="what it reaches (none)")
    sub.add_argument("--memory", metavar="SIZE", help="of the machine (512M; 1G where a system is on a disk)")
    sub.add_argument("--cpus", type=_count, default=1, metavar="N", help="of the machine (1)")
    sub.add_argument(
        "--limit", metavar="KEY=VALUE", action="append", default=[],
        help="what it may use of this host: cpu=1.5, memory=700M, file_size=8G",
    )  # fmt: skip
    sub.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="kill the program after so long")
    sub.add_argument("-t", "--tty", action="store_true", help="give it a terminal, which is yours (where there is one)")
    sub.add_argument("-n", "--no-stdin", action="store_true", help="give it nothing to read")
    sub.add_argument("words", nargs="*", metavar="PROGRAM …")
    sub = add("template", "clone:template", "freeze a running VM, so that clones of it are there at once")
    sub.add_argument("name", metavar="NAME", nargs="?", help="the VM")
    sub.add_argument("--as", dest="template", metavar="TEMPLATE", help="what the template is called (as the VM)")
    sub.add_argument(
        "--budget", metavar="SIZE", default="16G",
        help="what all may take together; those not used for longest go, but for those with clones (16G)",
    )  # fmt: skip
    sub.add_argument("--list", action="store_true", help="list the templates")
    sub.add_argument("--delete", metavar="TEMPLATE", help="remove one that has no clones")
    sub = add("fork", "fork:fork", "make running clones of a template, each a machine of its own")
    sub.add_argument("template", metavar="TEMPLATE")
    sub.add_argument("--count", type=_count, default=1, metavar="N", help="so many (1)")
    sub.add_argument("--name", metavar="NAME", help="what it is called; several are numbered (TEMPLATE-1, -2, …)")
    sub = add("discard", "clone:discard", "end clones at once, and remove all that there is of them")
    sub.add_argument("names", metavar="NAME", nargs="*")
    sub.add_argument("--of", metavar="TEMPLATE", help="all clones of it")

    add_one("undo", "snapshot:undo", "put a VM back to before the last exec --checkpoint")

    sub = add_one("timeline", "timeline:timeline", "show when what happened at its start: what took how long")
    sub.add_argument(
        "--compare", nargs="?", const="the run before", metavar="NAME|FILE", help="with another's, or the run before"
    )
    sub.add_argument("--before", action="store_true", help="that of the run before")
    sub.add_argument("--all", action="store_true", help="every entry, also those after the start")
    sub.add_argument("--format", choices=("text", "svg", "html", "json", "chrome"), default="text", help="(text)")
    sub.add_argument("-o", "--output", metavar="FILE", help="write it there")
    sub = add("web", "web:web", "show all VMs in a browser: screens, consoles, files, buttons")
    sub.add_argument("--address", default="127.0.0.1", help="an IP address to listen at (127.0.0.1)")
    sub.add_argument("--port", type=_port, default=8006, help="0: one that is free (8006)")
    sub.add_argument("--host-name", action="append", default=[], metavar="NAME", help="a name browsers may use for it")
    sub.add_argument("--certificate", metavar="FILE", help="PEM; with --key, instead of one that is made")
    sub.add_argument("--key", metavar="FILE", help="PEM")
    sub.add_argument(
        "--tls", action="store_true", help="with a certificate that is made; off loopback this is so anyway"
    )
    sub.add_argument("--no-tls", action="store_true", help="off loopback, behind a proxy that has one")
    sub.add_argument("--new-token", action="store_true", help="end all sessions of the token, and print another")
    sub.add_argument("--upload-limit", metavar="SIZE", default="16G", help="the largest file that is taken (16G)")
    does = sub.add_mutually_exclusive_group()
    does.add_argument("--add-user", metavar="NAME", help="whose password is asked for, or read from stdin; with --role")
    does.add_argument("--remove-user", metavar="NAME", help="and end their sessions")
    does.add_argument("--show-token", action="store_true", help="print the token of the server of this file")
    does.add_argument("--libraries", action="store_true", help="fetch what the pages need, and do no more")
    does.add_argument("--vnc-file", metavar="NAME", help="print a .vnc file for the VM's screen")
    sub.add_argument("--role", choices=("viewer", "operator"), default="viewer", help="viewers look, operators do")

    sub = add("img", "img:img", "make the images of the file, or list them")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="list the images, and whether they are built", parents=[common])
    sub = actions.add_parser("build", help="make images whose inputs have changed", parents=[common])
    sub.add_argument("names", metavar="NAME", nargs="*")
    sub.add_argument("--all", action="store_true", help="all images of the file")
    sub.add_argument("--force", action="store_true", help="also those whose inputs have not changed")
    sub.add_argument(
        "--timeout", type=_seconds, default=1800.0, metavar="SECONDS", help="for the boot that sets an image up (1800)"
    )

    sub = add("config", "configuration:config", "look at the configuration")
    actions = sub.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("check", help="show all that is wrong with the file", parents=[common])
    actions.add_parser("show", help="show what a VM comes to, and its command line", parents=[common]).add_argument(
        "name", metavar="NAME"
    )
    actions.add_parser("schema", help="print the schema for editors", parents=[common])
    add_one("explain", "configuration:explain", "say what each option of a VM's command line does")
    add("doctor", "doctor:doctor", "look at this host and say what is missing, and the cure")
    sub = add_one(
        "gdb", "gdb:gdb", "run the VM's QEMU under gdb, or attach to the one that runs: gdb NAME -- GDB-OPTION…"
    )
    sub.add_argument("words", nargs="*", metavar="GDB-OPTION …")
    sub = add("completion", "completion:completion", "print what makes a shell complete commands and names of VMs")
    sub.add_argument("shell", choices=("bash", "zsh", "fish"))
    add("version", "configuration:version", "say which versions this is made of")
    return parser


def _add_recording_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--console", choices=CONSOLES, default="", help="which one (the first it has)")
    sub.add_argument("--from", dest="mark", metavar="MARK", help="from this phase of the boot or message on")


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 <= speed <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a speed")
    return speed


def _add_console_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--console", default="", metavar="CONSOLE", help="ttyS0, hvc0, shell, or console (the first it has)"
    )
    who = sub.add_mutually_exclusive_group()
    who.add_argument("--steal", action="store_true", help="take the keyboard from whoever has it")
    who.add_argument("--read-only", action="store_true", help="do not type")
    history = sub.add_mutually_exclusive_group()
    history.add_argument("--no-history", action="store_true", help="show only what comes from now on")
    history.add_argument("--since", metavar="WHEN", help="begin with: start, 90s, 10m, 2h, or a marker (kernel)")
    sub.add_argument("--grep", metavar="REGEX", help="only show lines that match, as plain text; do not type")
    sub.add_argument("--until", metavar="REGEX", help="leave once it has said this")
    sub.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up after so long")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return seconds


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return port


def _position(text: str) -> str | int:
    return text if text in ("start", "prompt", "now") else _count(text)


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of lines")
    return number


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line. Raises ConfigError."""
    words, behind = list(words), []
    command = next((word for word in words if word in _SPLIT_AT_DASHES), None)
    if command is not None and "--" in words:
        at = words.index("--")
        words, behind = words[:at], words[at + 1 :]
    options = build_parser().parse_args(words)
    for name, value in (("config", None), ("json", False), ("debug", False)):
        if not hasattr(options, name):
            setattr(options, name, value)
    if options.command in _SPLIT_AT_DASHES:
        options.words += behind
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        from control.cli.completion import complete

        complete(build_parser())
    words = sys.argv[1:] if words is None else words
    is_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        options = parse(words)
        if options.debug:
            from control.log import show_debug_log

            show_debug_log()
        module, function = options.does.split(":")
        exit_code: int = getattr(importlib.import_module(f"control.cli.{module}"), function)(Desk(options))
    except ControlError as error:
        return show_error(error, is_json=is_json)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _leave_quietly()
        what = f"{error.filename}: " if error.filename else ""
        return show_error(ControlError(f"{what}{error.strerror or error}"), is_json=is_json)
    except KeyboardInterrupt:
        if is_json:
            return show_error(_interrupted(), is_json=True)
        return EXIT_INTERRUPTED
    return exit_code


def run() -> NoReturn:
    """Run one command as the whole of this process; `control.cli.begin` calls it."""
    _open_what_is_closed()
    exit_code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        exit_code = _leave_quietly()
    except OSError:
        sys.exit(exit_code)  # the interpreter says that output was lost
    # Taking the interpreter apart costs some 20 ms, and the kernel frees all of it anyway.
    os._exit(exit_code)


def _open_what_is_closed() -> None:
    """Give a process without stdin, stdout or stderr an empty one: else the next file it opens would become it."""
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_WRONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8"))


def _interrupted() -> ControlError:
    error = ControlError("interrupted")
    error.exit_code = EXIT_INTERRUPTED
    return error


def _leave_quietly() -> int:
    """Whoever read our output wants no more of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return EXIT_ERROR
