"""The architecture holds: imports go down only, each dependency has one door, no module hides another's name.

The floors are those of docs/architecture.md. A failure names the file and line of the import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from control.paths import ROOT

FLOOR_OF_ROOM = {
    "errors": 0, "failure": 0, "units": 0, "paths": 0, "log": 0, "streams": 0, "descriptors": 0,
    "spec": 1, "wire": 1, "host": 1,
    "argv": 2, "process": 2, "monitor": 2, "console": 2, "agent": 2, "share": 2, "accel": 2, "ssh": 2, "image": 2,
    "timeline": 2,
    "vm": 3,
    "session": 4,
    "lua": 5, "web": 5,
    "launch": 6, "cli": 6, "testing": 6,
    "simple_vm_launcher": 7, "enhanced_vm_launcher": 7, "unhinged_launcher": 7,
}  # fmt: skip
MEANS, FACES, DOORS = 2, 6, 7

DOOR_OF_DEPENDENCY = {
    "qemu": ("control/monitor/",),
    "jsonschema_rs": ("control/wire/schema.py",),
    "asyncinotify": ("control/share/",),
    "serial": ("control/agent/serial_line.py", "control/process/serial_holder.py"),
    "argcomplete": ("control/cli/completion.py",),
    "pexpect": ("control/session/engine.py",),
    "aiohttp": ("control/web/",),
    "cryptography": ("control/web/tls.py",),
    "pytest": ("control/testing/plugin.py",),
}
STARTS_PROCESSES = ("subprocess", "multiprocessing", "pty")
PROCESS_CALLS = ("fork", "forkpty", "system", "popen", "posix_spawn", "posix_spawnp", "create_subprocess_exec",
                 "create_subprocess_shell", "subprocess_exec", "subprocess_shell")  # fmt: skip
PROCESS_DOORS = (
    "control/process/",
    "control/launch/entry.py",  # runs before there is anything else, under any Python
    "control/launch/deps.py",  # the same: it installs what the rest needs
    "control/launch/doctor.py",  # the same: it looks for what is lacking
    "control/vm/supervise.py",  # lets go of whoever started it, before there is anything else
    "control/unhinged_launcher.py",  # make, in the foreground, with the user's terminal
)
PROGRAMS = (
    "control/process/keeper.py",
    "control/process/pty_holder.py",
    "control/process/serial_holder.py",
    "control/process/terminal.py",
    "control/vm/supervise.py",
)
"""Started by themselves, below the faces; the second forks what outlives us."""

RUNS_BEFORE_SET_UP = (
    "control/launch/entry.py",
    "control/launch/deps.py",
    "control/launch/doctor.py",
    "control/process/keeper.py",
)


@dataclass(frozen=True)
class Import:
    """One import: where it stands and the module it names, in full."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def list_sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def list_imports(path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT).as_posix()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield Import(file, node.lineno, f"{module}.{alias.name}")


def room_of(module: str) -> str | None:
    """The room a module of `control` belongs to; None for the package itself and all others."""
    parts = module.split(".")
    return parts[1] if parts[0] == "control" and len(parts) > 1 else None


def room_of_file(file: str) -> str | None:
    return room_of(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))


def test_every_room_has_a_floor() -> None:
    rooms = {room_of_file(path.relative_to(ROOT).as_posix()) for path in list_sources("control")} - {None}
    assert rooms <= set(FLOOR_OF_ROOM), "a new room is written down in docs/architecture.md and here"


def test_imports_go_down_only() -> None:
    wrong = []
    for path in list_sources("control"):
        for found in list_imports(path):
            room, target = room_of_file(found.file), room_of(found.module)
            if room is None or target is None or room == target or target.startswith("__"):
                continue
            floor, below = FLOOR_OF_ROOM[room], FLOOR_OF_ROOM[target]
            beside = floor == below and floor not in (0, 1, DOORS)
            if below > floor or beside:
                wrong.append(f"{found}, from floor {floor} to floor {below}")
    assert not wrong, "\n".join(wrong)


def test_doors_stand_on_faces_and_ground_only_below_them() -> None:
    """Nothing but a launcher imports a launcher."""
    doors = {room for room, floor in FLOOR_OF_ROOM.items() if floor == DOORS}
    wrong = [
        str(found)
        for path in list_sources("control")
        for found in list_imports(path)
        if room_of(found.module) in doors and room_of_file(found.file) not in doors
    ]
    assert not wrong, "\n".join(wrong)


def test_each_dependency_has_one_door() -> None:
    wrong = [
        str(found)
        for path in list_sources("control", "guest", "iso")
        for found in list_imports(path)
        for dependency, doors in DOOR_OF_DEPENDENCY.items()
        if found.module.split(".")[0] == dependency and not found.file.startswith(doors)
    ]
    assert not wrong, "\n".join(wrong)


def test_control_imports_only_known_dependencies() -> None:
    known = {*sys.stdlib_module_names, *DOOR_OF_DEPENDENCY, "control"}
    wrong = [
        str(found)
        for path in list_sources("control")
        for found in list_imports(path)
        if found.module.split(".")[0] not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_the_ground_is_standard_library_only() -> None:
    wrong = [
        str(found)
        for path in list_sources("control")
        for found in list_imports(path)
        if FLOOR_OF_ROOM.get(room_of_file(found.file) or "") == 0
        and found.module.split(".")[0] not in {*sys.stdlib_module_names, "control"}
    ]
    assert not wrong, "\n".join(wrong)


def test_child_processes_start_in_one_room() -> None:
    wrong = []
    for path in list_sources("control"):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(PROCESS_DOORS):
            continue
        wrong += [str(found) for found in list_imports(path) if found.module.split(".")[0] in STARTS_PROCESSES]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (
                node.attr in PROCESS_CALLS
                or (isinstance(node.value, ast.Name) and node.value.id == "os" and node.attr.startswith("spawn"))
            ):
                wrong.append(f"{file}:{node.lineno} uses {node.attr}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", RUNS_BEFORE_SET_UP)
def test_what_runs_before_set_up_needs_no_dependency(file: str) -> None:
    allowed = {*sys.stdlib_module_names, "control"}
    seen: set[str] = set()
    waiting = [ROOT / file]
    while waiting:
        path = waiting.pop()
        for found in list_imports(path):
            assert found.module.split(".")[0] in allowed, str(found)
            for module in (found.module, found.module.rpartition(".")[0]):
                below = ROOT / (module.replace(".", "/") + ".py")
                if module.startswith("control.") and module not in seen and below.is_file():
                    seen.add(module)
                    waiting.append(below)


def test_the_guest_imports_the_standard_library_and_itself() -> None:
    wrong = [
        str(found)
        for path in list_sources("guest")
        for found in list_imports(path)
        # In the guest the agent's folder is on the path under its own name.
        if found.module.split(".")[0] not in {*sys.stdlib_module_names, "guest", "agent"}
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_but_faces_prints_or_exits() -> None:
    wrong = []
    for path in list_sources("control"):
        file = path.relative_to(ROOT).as_posix()
        if FLOOR_OF_ROOM.get(room_of_file(file) or "", 0) >= FACES or file in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "os._exit", "exit"):
                wrong.append(f"{file}:{node.lineno} calls {ast.unparse(node.func)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["control", "guest"])
def test_no_module_is_named_like_another(package: str) -> None:
    """A folder `control/qemu` would break `import qemu.qmp` when a launcher is run as a script."""
    taken = {*sys.stdlib_module_names, *DOOR_OF_DEPENDENCY, "pytest", "jsonschema", "pexpect", "serial"}
    names = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not (names & taken)
    assert not (names & {"utils", "helpers", "common", "manager"})
