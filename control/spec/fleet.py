"""A configuration file as facts (floor 1): its VMs, its images, the order they start in. The faces begin here.

Reading is strict: an unknown key, a wrong type, a circle is a `ConfigFileError` that names its line. The variables in
a VM's command line are filled in only when that VM is asked for (`build_words`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError
from control.paths import IMAGE, check_instance_name
from control.spec.declaration import (
    SshValue,
    Surroundings,
    VMDeclaration,
    read_ssh_options,
    read_vm,
)
from control.spec.locate import Location
from control.spec.network import Forward, find_forwards, overlap
from control.spec.tables import Problems, Table
from control.spec.tomlfile import ConfigFileError, Document, read_document, show_value, suggest

if TYPE_CHECKING:
    from control.spec.image import ImageDeclaration
    from control.spec.template import Renderer

TOP_KEYS = ("qemu", "vars", "ssh", "vm", "img")
QEMU_KEYS = ("bin", "img")
RESERVED_VARIABLES = ("vm", "img")
EXTENDS_MAX = 32
VMS_MAX = 1000

_REFUSED_WORDS = {
    "-pidfile": "the pid of QEMU is kept by us",
    "-monitor": "the monitor is reached with: monitor NAME",
    "-qmp": "QMP is reached with: qmp NAME",
    "-serial": "the serial console is reached with: serial NAME",
    "-daemonize": "QEMU is put into the background by us",
}
"""What is added to every command line, and cannot be there twice; qqmgr refuses the first four as well."""

_PICKED = "is a port that is picked when the VM starts"
_PICKED_HINT = "it can be used in cmd, qemu_args and append; or name a port"


@dataclass(frozen=True)
class Fleet:
    """One configuration file, read and checked.

    Attributes:
        qemu, qemu_img: The programs, as they are to be looked for; empty when not named.
        ssh_options: Of `[ssh]`, for every VM.
        vms: By name, in the order of the file, the abstract ones among them.
        notes: What the user should know though nothing is wrong, each one line.
    """

    location: Location
    qemu: str
    qemu_img: str
    vars: Mapping[str, Any]
    ssh_options: Mapping[str, SshValue]
    vms: Mapping[str, VMDeclaration]
    images: Mapping[str, ImageDeclaration]
    notes: tuple[str, ...] = ()
    document: Document = field(repr=False, compare=False, kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The VMs that can be started."""
        return tuple(name for name, vm in self.vms.items() if not vm.abstract)


def load_fleet(location: Location) -> Fleet:
    """Read the configuration file at `location`.

    Raises:
        ConfigFileError: The first thing that is wrong with it.
    """
    document = read_document(location.path, location.file)
    return _Reader(document, location, Problems(document, lenient=location.is_qqmgr)).read()


def find_problems(location: Location) -> tuple[ConfigFileError, ...]:
    """Find everything that is wrong with the configuration file, in the order of its lines."""
    try:
        document = read_document(location.path, location.file)
    except ConfigFileError as error:
        return (error,)
    problems = Problems(document, collect=True, lenient=location.is_qqmgr)
    reader = _Reader(document, location, problems)
    fleet = reader.read()
    if not problems.found:
        reader.check_command_lines(fleet)
    return problems.found


def get_vm(fleet: Fleet, name: str) -> VMDeclaration:
    """Return the VM `name`.

    Raises:
        ConfigError: There is none that can be started; names the nearest.
    """
    vm = fleet.vms.get(name)
    if vm is None:
        raise ConfigError(
            f"there is no VM {show_value(name)} in {fleet.location.file}",
            file=fleet.location.file,
            key=f"vm.{name[:80]}",
            hint=suggest(name, fleet.names, kind="VMs"),
        )
    if vm.abstract:
        raise ConfigError(
            f"{name} is only there to be extended (abstract = true)",
            file=fleet.location.file,
            key=f"vm.{name}.abstract",
            hint=suggest(name, fleet.names, kind="VMs"),
        )
    return vm


def build_words(fleet: Fleet, vm: VMDeclaration, ports: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """Return the words `vm` adds to QEMU's command line, in their order: those of `cmd`, then `qemu_args`.

    Args:
        ports: The ports that were picked, by `Forward.key`. Without one that a word needs, that is an error.

    Raises:
        ConfigFileError: A variable is not defined or circular, or a word is added by us as well.
    """
    renderer = _build_renderer(fleet, vm, ports)
    words: list[str] = []
    for index, text in enumerate(vm.cmd):
        with _blamed_on(fleet, vm, "cmd", index):
            words += _check_words(renderer.render_value(text).split())
    for index, text in enumerate(vm.qemu_args):
        with _blamed_on(fleet, vm, "qemu_args", index):
            words += _check_words([renderer.render_value(text)])
    return tuple(words)


def build_append(fleet: Fleet, vm: VMDeclaration, ports: Mapping[str, int] | None = None) -> str:
    """Return the words `vm` adds to the kernel's command line. Raises ConfigFileError, as `build_words` does."""
    with _blamed_on(fleet, vm, "append"):
        return _check_characters(_build_renderer(fleet, vm, ports).render_value(vm.append))


@contextmanager
def _blamed_on(fleet: Fleet, vm: VMDeclaration, *path: str | int) -> Iterator[None]:
    """Say of a ConfigError where in the file what it speaks of stands."""
    try:
        yield
    except ConfigError as error:
        problems = Problems(fleet.document, collect=True)
        problems.report(("vm", vm.name, *path), str(error), hint=error.hint, chain=vm.chain)
        raise problems.found[0] from error


def list_auto_forwards(vm: VMDeclaration) -> tuple[Forward, ...]:
    """The forwards of `vm` whose port of the host is to be picked."""
    return tuple(forward for forward in vm.host_forwards if forward.host == "auto")


def build_start_layers(fleet: Fleet, names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Say in which order to start `names` and all they depend on: each layer at once, one layer after the other.

    Raises:
        ConfigError: There is no such VM.
    """
    waiting: dict[str, set[str]] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in waiting:
            waiting[name] = set(get_vm(fleet, name).depends_on)
            queue += waiting[name]
    layers = []
    order = list(fleet.vms)
    while waiting:
        ready = {name for name, needs in waiting.items() if not needs & waiting.keys()}
        if not ready:  # seen when the file was read; a fleet made otherwise is told here
            raise ConfigError(f"VMs wait for each other: {', '.join(sorted(waiting))}", key="depends_on")
        layers.append(tuple(sorted(ready, key=order.index)))
        for name in ready:
            del waiting[name]
    return tuple(layers)


def _build_renderer(fleet: Fleet, vm: VMDeclaration, ports: Mapping[str, int] | None) -> Renderer:
    ssh: dict[str, Any] = {}
    if vm.ssh is not None:
        port: object = vm.ssh.port
        if port == "auto":
            port = (ports or {}).get(Forward("auto", vm.ssh.vm_port).key, port)
        ssh = {"port": port, "vm_port": vm.ssh.vm_port}
    return _make_renderer(fleet.vars, vm.vars, ssh, fleet.images)


def _make_renderer(
    variables: Mapping[str, Any],
    vm_variables: Mapping[str, Any],
    ssh: Mapping[str, Any],
    images: Mapping[str, ImageDeclaration],
) -> Renderer:
    """Make what fills in templates; `vm`, `img` and `vm.ssh` are ours whatever the variables say."""
    from control.spec.template import Later, Renderer  # many files have no variables

    known: dict[str, Any] = {key: value for key, value in ssh.items() if value is not None}
    if known.get("port") == "auto":
        known["port"] = Later(_PICKED, _PICKED_HINT)
    paths = {name: str(image.path) for name, image in images.items()}
    return Renderer({**variables, "vm": {**vm_variables, "ssh": known}, "img": paths})


def _check_words(words: list[str]) -> list[str]:
    for word in words:
        _check_characters(word)
        option = word[1:] if word.startswith("--") else word
        if option in _REFUSED_WORDS:
            raise ConfigError(f"{word} is added to every command line: leave it out", hint=_REFUSED_WORDS[option])
    return words


def _check_characters(text: str) -> str:
    if "\0" in text:
        raise ConfigError("holds a NUL character", hint="no program can be given one")
    return text


class _Reader:
    """One reading of one file."""

    def __init__(self, document: Document, location: Location, problems: Problems) -> None:
        self._location = location
        self._document = document
        self._problems = problems

    def read(self) -> Fleet:
        # What belongs to no VM knows the variables of the file alone.
        render = _LateRenderer(_table_of(self._document.data, "vars"), {}, {}).render_value
        top = Table(self._document.data, (), self._problems, render=render)
        top.check_keys(TOP_KEYS, kind="tables of a configuration")
        qemu = top.table("qemu")
        if qemu is not None:
            qemu.check_keys(QEMU_KEYS, kind="keys of [qemu]")
        variables = self._read_variables(top)
        ssh = top.table("ssh")
        images = self._read_images(top)
        vms = self._read_vms(top, variables, images)
        self._check_dependencies(vms)
        self._check_ports(vms)
        return Fleet(
            self._location,
            self._read_program(qemu, "bin"),
            self._read_program(qemu, "img"),
            variables,
            read_ssh_options(ssh) if ssh is not None else {},
            vms,
            images,
            tuple(self._problems.notes),
            document=self._document,
        )

    def _read_program(self, qemu: Table | None, key: str) -> str:
        program = (qemu.text(key, "the name or path of a program") if qemu is not None else None) or ""
        around = self._surroundings(())
        # A plain name is looked for in PATH; a path is one, wherever we are started.
        return str(around.path(program)) if "/" in program else program

    def _surroundings(self, images: Iterable[str]) -> Surroundings:
        return Surroundings(self._location.directory, self._location.home, tuple(images))

    def _read_variables(self, top: Table) -> dict[str, Any]:
        variables = top.get("vars", dict, "a table") or {}
        for name in RESERVED_VARIABLES:
            if name in variables:
                self._problems.report(
                    ("vars", name),
                    f"a variable cannot be called {name}",
                    hint=f"{{{{.{name}…}}}} is something else",
                    minor=True,
                )
        return variables

    def _named_tables(self, top: Table, key: str, what: str) -> dict[str, Table]:
        """The tables `[key.NAME]` whose names are right."""
        outer = top.table(key)
        found: dict[str, Table] = {}
        for name in outer.values if outer is not None else ():
            try:
                check_instance_name(name)
            except ConfigError as error:
                self._problems.report((key, name), f"{show_value(name)} cannot be the name of {what}", hint=error.hint)
                continue
            if outer is not None and (table := outer.table(name)) is not None:
                found[name] = table
        if len(found) > VMS_MAX:
            self._problems.report((key,), f"there are {len(found)} of them", hint=f"at most {VMS_MAX}")
        return found

    def _read_images(self, top: Table) -> dict[str, ImageDeclaration]:
        tables = self._named_tables(top, "img", "an image")
        if not tables:
            return {}
        from control.spec.image import read_image

        around = self._surroundings(())
        return {
            name: read_image(
                table,
                name,
                directory=self._location.runtime / f"img.{name}",
                around=around,
                builtin=IMAGE / "unhinged.iso",
            )
            for name, table in tables.items()
        }

    def _read_vms(
        self, top: Table, variables: dict[str, Any], images: Mapping[str, ImageDeclaration]
    ) -> dict[str, VMDeclaration]:
        tables = self._named_tables(top, "vm", "a VM")
        around = self._surroundings(images)
        vms = {}
        for name, table in tables.items():
            chain = self._follow_extends(name, tables)
            merged = _merge([{**tables[link].values, "abstract": False} for link in chain])
            merged["abstract"] = table.values.get("abstract", False)
            render = _LateRenderer(variables, merged, images).render_value
            reading = Table(merged, ("vm", name), self._problems, chain=chain, render=render)
            vms[name] = read_vm(reading, name, around=around)
            if "ssh" in vms[name].vars:
                self._problems.report(
                    ("vm", name, "vars", "ssh"),
                    "a variable cannot be called ssh",
                    hint="{{.vm.ssh.port}} is the port of its ssh",
                    chain=chain,
                    minor=True,
                )
        return vms

    def _follow_extends(self, name: str, tables: Mapping[str, Table]) -> list[str]:
        """Return `name` and what it extends, nearest first; a circle or an unknown name is reported, and ends it."""
        chain = [name]
        while isinstance(parent := tables[chain[-1]].values.get("extends"), str):
            path = ("vm", chain[-1], "extends")
            if parent in chain:
                circle = chain[chain.index(parent) :]
                if name == next(other for other in tables if other in circle):  # told once for all that are in it
                    shown = " → ".join([*circle, parent])
                    self._problems.report(path, f"VMs extend each other in a circle: {shown}", hint="break it")
                return chain
            if parent not in tables:
                hint = suggest(parent, list(tables), kind="VMs")
                self._problems.report(path, f"extends {show_value(parent)}, and there is no such VM", hint=hint)
                return chain
            if len(chain) >= EXTENDS_MAX:
                self._problems.report(path, f"extends more than {EXTENDS_MAX} VMs in a row", hint="use fewer steps")
                return chain
            chain.append(parent)
        return chain

    def _check_dependencies(self, vms: Mapping[str, VMDeclaration]) -> None:
        usable = [name for name, vm in vms.items() if not vm.abstract]
        for vm in vms.values():
            for index, needed in enumerate(vm.depends_on):
                path = ("vm", vm.name, "depends_on", index)
                if needed not in vms:
                    hint = suggest(needed, usable, kind="VMs")
                    self._problems.report(
                        path, f"depends on {show_value(needed)}, and there is no such VM", hint=hint, chain=vm.chain
                    )
                elif vms[needed].abstract:
                    self._problems.report(
                        path, f"depends on {needed}, which is abstract and never starts", chain=vm.chain
                    )
        for circle in _find_circles({name: vm.depends_on for name, vm in vms.items() if not vm.abstract}):
            self._problems.report(
                ("vm", circle[0], "depends_on"),
                f"VMs wait for each other: {' → '.join(circle)}",
                hint="leave out one of these dependencies",
                chain=vms[circle[0]].chain,
            )

    def _check_ports(self, vms: Mapping[str, VMDeclaration]) -> None:
        self._check_wishes({vm.name: vm.host_forwards for vm in vms.values() if not vm.abstract}, vms)

    def _check_wishes(self, wishes: Mapping[str, tuple[Forward, ...]], vms: Mapping[str, VMDeclaration]) -> None:
        taken: dict[tuple[object, str], list[tuple[str, Forward]]] = {}
        for name, forwards in wishes.items():
            for forward in forwards:
                others = taken.setdefault((forward.host, forward.protocol), [])
                rival = next((other for other, theirs in others if other != name and overlap(forward, theirs)), None)
                if rival is not None:
                    self._problems.report(
                        _wish_path(vms[name], forward),
                        f"port {forward.host} of the host is wanted by {rival} and by {name}",
                        hint='give one of them another, or "auto"',
                        chain=vms[name].chain,
                        minor=True,
                    )
                others.append((name, forward))

    def check_command_lines(self, fleet: Fleet) -> None:
        """Report what is wrong with the command lines, whose variables are filled in only here."""
        wishes = {}
        for name in fleet.names:
            vm = fleet.vms[name]
            picked = {forward.key: 1 for forward in list_auto_forwards(vm)}
            try:
                words = build_words(fleet, vm, picked)
                build_append(fleet, vm, picked)
            except ConfigFileError as error:
                self._problems.add(error)
                continue
            known = vm.host_forwards
            more = [found for found in find_forwards(words) if not any(overlap(found, other) for other in known)]
            wishes[name] = (*known, *more)
        self._check_wishes(wishes, fleet.vms)


def _merge(tables: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay each table over those behind it; tables within are merged too, all else is replaced."""
    merged: dict[str, Any] = {}
    for table in reversed(tables):
        for key, value in table.items():
            below = merged.get(key)
            merged[key] = _merge([value, below]) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _wish_path(vm: VMDeclaration, forward: Forward) -> tuple[str | int, ...]:
    """Where `vm` asks for the port of `forward`."""
    if forward in vm.forwards:
        return ("vm", vm.name, "forward")
    return ("vm", vm.name, *(("ssh", "port") if forward in vm.host_forwards else ("cmd",)))


def _table_of(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


class _LateRenderer:
    """Fills in the variables of a VM that is still being read; made for each, and seldom needed."""

    def __init__(
        self, variables: Mapping[str, Any], values: Mapping[str, Any], images: Mapping[str, ImageDeclaration]
    ) -> None:
        self._variables = variables
        self._values = values
        self._images = images
        self._renderer: Renderer | None = None

    def render_value(self, text: str) -> str:
        if self._renderer is None:
            ssh = _table_of(self._values, "ssh")
            known = {"port": ssh.get("port"), "vm_port": ssh.get("vm_port", 22)} if "ssh" in self._values else {}
            self._renderer = _make_renderer(self._variables, _table_of(self._values, "vars"), known, self._images)
        return self._renderer.render_value(text)


def _find_circles(needs: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Each circle of dependencies once, as a way that ends where it began."""
    done: set[str] = set()
    circles = []
    for start in needs:
        way: list[str] = []
        stack = [(start, iter(needs[start]))] if start not in done else []
        if stack:
            way.append(start)
        while stack:
            name, following = stack[-1]
            target = next(following, None)
            if target is None:
                stack.pop()
                way.pop()
                done.add(name)
            elif target in way:
                circles.append([*way[way.index(target) :], target])
            elif target in needs and target not in done:
                way.append(target)
                stack.append((target, iter(needs[target])))
    return circles
