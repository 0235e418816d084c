"""The pytest plugin (floor 6): options, markers, fixtures and what is added to reports. See docs/testing.md.

Imported by every pytest run beside which this package is installed; whatever else is needed is imported by the first
test that wants a machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from control.testing.crew import Crew
    from control.testing.machine import Machine

FIXTURES = ("vm", "vm_session", "vm_factory", "vm_lan")
INI = ("vm_image", "vm_memory", "vm_net", "vm_timeout")

_cells = pytest.StashKey[list[dict[str, str]]]()
_crew = pytest.StashKey["Crew"]()
_has_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vm", "virtual machines (unhinged-vm)")
    group.addoption(
        "--vm-keep-on-fail", action="store_true", help="leave the machines of a test that failed, and say how to enter"
    )
    group.addoption(
        "--vm-matrix",
        action="append",
        default=[],
        metavar="KEY=VALUE,…",
        help="run tests with machines once for each value, as image=builtin,debian; several times for combinations",
    )
    group.addoption("--vm-artifacts", metavar="DIR", help="where consoles, logs and pictures of failed tests go")
    for name, what in zip(INI, ("image", "memory", "network", "timeout in seconds"), strict=True):
        parser.addini(name, f"the {what} of machines whose tests do not say otherwise", default=None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "vm(image, memory, cpus, net, display, files, fresh, allow, timeout): what the machines of a test are like",
    )
    if words := config.getoption("--vm-matrix"):
        config.stash[_cells] = _read_cells(words)


def pytest_unconfigure(config: pytest.Config) -> None:
    crew = config.stash.get(_crew, None)
    if crew is not None:
        crew.close()


def _read_cells(words: list[str]) -> list[dict[str, str]]:
    """What `--vm-matrix` comes to. Raises pytest.UsageError."""
    from control.errors import ConfigError
    from control.testing.wishes import read_matrix

    try:
        return read_matrix(words)
    except ConfigError as error:
        raise pytest.UsageError(f"{error}; {error.hint}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = metafunc.config.stash.get(_cells, [])
    if cells and "_vm_cell" in metafunc.fixturenames:
        ids = ["-".join(cell.values()) for cell in cells]
        metafunc.parametrize("_vm_cell", cells, ids=ids, indirect=True, scope="session")


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _vm_cell(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `--vm-matrix` says for this test."""
    return dict(getattr(request, "param", {}))


@pytest.fixture
def vm_factory(request: pytest.FixtureRequest, _vm_cell: dict[str, Any]) -> Iterator[Callable[..., Machine]]:
    """Call it for a machine, as often as wanted: `vm_factory(name="db", memory="1G")`; other words as the marker's."""
    crew = _find_crew(request.config)
    made: list[Machine] = []

    def make(name: str = "", **wish: Any) -> Machine:
        label = name or (f"vm{len(made) + 1}" if made else "vm")
        machine = crew.make(label, {**_read_marks(request.node), **wish, **_vm_cell}, _find_directory(request.node))
        made.append(machine)
        crew.assign(request.node.nodeid, machine)
        machine.begin_test()
        return machine

    yield make
    crew.throw_away(made)


@pytest.fixture
def vm(vm_factory: Callable[..., Machine]) -> Machine:
    """A machine of this test's own: a clone of one that has booted."""
    return vm_factory()


@pytest.fixture(scope="session")
def vm_session(request: pytest.FixtureRequest, _vm_cell: dict[str, Any]) -> Iterator[Machine]:
    """One machine for all tests that want it; markers do not change what it is like."""
    crew = _find_crew(request.config)
    machine = crew.make("vm_session", _vm_cell, request.config.rootpath)
    crew.shared.append(machine)
    yield machine
    crew.shared.remove(machine)
    crew.throw_away([machine])


@pytest.fixture
def vm_lan(vm_factory: Callable[..., Machine]) -> Callable[..., list[Machine]]:
    """Call it for machines on a network of their own: `vm_lan(3)`, or `vm_lan("web", "db")`; they know these names."""
    from control.testing.lan import make_lan

    return lambda *names, **wish: make_lan(vm_factory, names, wish)


def _find_crew(config: pytest.Config) -> Crew:
    crew = config.stash.get(_crew, None)
    if crew is None:
        from control.testing.crew import Crew

        defaults = {name.removeprefix("vm_"): config.getini(name) for name in INI}
        artifacts = config.getoption("--vm-artifacts")
        crew = Crew(
            {key: value for key, value in defaults.items() if value},
            Path(artifacts).absolute() if artifacts else config.rootpath / ".unhinged" / "artifacts",
            say=_find_say(config),
        )
        config.stash[_crew] = crew
    return crew


def _find_say(config: pytest.Config) -> Callable[[str], None]:
    """How a user is told of what takes a while; under xdist a worker has nobody to tell."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return lambda line: None
    return lambda line: reporter.write_line(f"unhinged: {line}")


def _read_marks(node: pytest.Item) -> dict[str, Any]:
    """What the markers of a test, its class and its module say; the nearest counts."""
    wish: dict[str, Any] = {}
    for mark in node.iter_markers("vm"):
        if mark.args:
            from control.errors import ConfigError

            raise ConfigError("@pytest.mark.vm takes words with names only", key="vm", hint="as image='debian'")
        wish = {**mark.kwargs, **wish}
    return wish


def _find_directory(node: pytest.Item) -> Path:
    return node.path.parent


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Say what the next test will want."""
    if "vm" not in getattr(item, "fixturenames", ()):
        return
    crew = _find_crew(item.config)
    if nextitem is None or "vm" not in getattr(nextitem, "fixturenames", ()):
        crew.expect(None, _find_directory(item))
        return
    call = getattr(nextitem, "callspec", None)
    cell = call.params.get("_vm_cell", {}) if call is not None else {}
    crew.expect(lambda: {**_read_marks(nextitem), **cell}, _find_directory(nextitem))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    crew = item.config.stash.get(_crew, None)
    if crew is not None:
        for machine in crew.shared:
            machine.begin_test()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that has succeeded fails when something is wrong with one of its guests."""
    __tracebackhide__ = True
    result = yield
    machines = _list_machines(item)
    if machines:
        from control.testing.evidence import GuestTrouble, find_troubles

        found = [
            f"{machine.label}: {each.kind}: {each.words}" for machine in machines for each in find_troubles(machine)
        ]
        if found:
            raise GuestTrouble("\n".join(["something is wrong with the guest, though the test did not fail:", *found]))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Add what there is to know of the machines of a test that failed; they are still there."""
    report: pytest.TestReport = yield
    if not report.failed or item.stash.get(_has_failed, False):
        return report
    item.stash[_has_failed] = True
    if call.excinfo is not None:
        for title, text in _advise(call.excinfo.value):
            _add_section(report, title, text)
    for machine in _list_machines(item):
        for title, text in _collect(item, machine):
            _add_section(report, f"{machine.label}: {title}", text)
    return report


def _advise(error: BaseException) -> Iterator[tuple[str, str]]:
    """What an error of ours knows beside its sentence."""
    from control.errors import ControlError

    if isinstance(error, ControlError):
        if error.evidence:
            yield "seen", "\n".join(error.evidence)
        if error.hint:
            yield "hint", error.hint


def _collect(item: pytest.Item, machine: Machine) -> Iterator[tuple[str, str]]:
    from control.errors import ControlError
    from control.testing.evidence import collect

    crew = _find_crew(item.config)
    directory = crew.artifacts / re.sub(r"[^A-Za-z0-9._-]+", "-", item.nodeid)[-120:].strip("-")
    try:
        for section in collect(machine, directory):
            yield section.title, section.text
    except (ControlError, OSError) as error:
        yield "evidence", f"it cannot be had: {error}"
    if item.config.getoption("--vm-keep-on-fail"):
        try:
            how = crew.keep(machine)
        except ControlError as error:
            how = f"it could not be kept: {error}"
        item.user_properties.append(("vm_kept", f"{item.nodeid}: {machine.label}: {how}"))
        yield "kept", how


def _add_section(report: pytest.TestReport, title: str, text: str) -> None:
    """To the failure itself where it can have one, so that JUnit's files have it as well."""
    add = getattr(report.longrepr, "addsection", None)
    if add is not None:
        add(title, text)
    else:
        report.sections.append((title, text))


def _list_machines(item: pytest.Item) -> list[Machine]:
    """The machines of a test: its own, and those that it shares with others."""
    crew = item.config.stash.get(_crew, None)
    if crew is None:
        return []
    shared = crew.shared if "vm_session" in getattr(item, "fixturenames", ()) else []
    return [*crew.of_test(item.nodeid), *shared]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    kept: dict[str, None] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            kept.update({text: None for name, text in getattr(report, "user_properties", ()) if name == "vm_kept"})
    if kept:
        terminalreporter.section("machines that were kept")
        for text in kept:
            terminalreporter.write_line(text)
