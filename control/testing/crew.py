"""The machines of one pytest process (floor 6): made, given to tests, and thrown away."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from control.errors import ControlError
from control.paths import cache_directory
from control.testing.machine import Machine
from control.testing.wishes import Wish, read_wish
from control.vm.disposable import Disposable, Shape, make_disposable
from control.vm.hire import Agency


class Crew:
    """Makes machines and throws them away; close it at the end.

    While a test works with its machine, that of the next test is made already, and that of the last one goes.

    Attributes:
        artifacts: Where what is known of the machines of failed tests is written.
        shared: Machines that are not one test's own.
    """

    def __init__(self, defaults: Mapping[str, Any], artifacts: Path, say: Callable[[str], None]) -> None:
        self.artifacts = artifacts
        self.shared: list[Machine] = []
        self._defaults = defaults
        self._say = say
        self._agency = Agency(cache_directory() / "run")
        self._expected: Shape | None = None
        self._ahead: tuple[Shape, Future[Disposable]] | None = None
        self._of_test: dict[str, list[Machine]] = defaultdict(list)
        self._leaving, self._coming = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._left: list[Future[None]] = []

    def make(self, label: str, wish: Mapping[str, Any], directory: Path) -> Machine:
        """Make a machine with its files in it.

        Args:
            wish: `control.testing.wishes.KEYS`; what it does not say, the ini file may.
            directory: What paths in it are relative to.

        Raises:
            ControlError: It cannot be made; nothing is left of it.
        """
        wanted = self._read(wish, directory)
        disposable = None if wanted.fresh else self._take_ahead(wanted.shape)
        if disposable is None:
            disposable = self._make(wanted.shape, self._say, fresh=wanted.fresh)
        try:
            if self._expected is not None:
                self._ahead = self._expected, self._coming.submit(self._make, self._expected, _say_nothing)
                self._expected = None
            machine = Machine(disposable, wanted, label, self.artifacts)
            machine.install_files()
        except BaseException:
            disposable.discard()
            raise
        return machine

    def expect(self, find_wish: Callable[[], Mapping[str, Any]] | None, directory: Path) -> None:
        """Say what the next test wants, as far as it is known; it is made once the present test has its machine."""
        self._expected = None
        if find_wish is not None:
            with contextlib.suppress(ControlError):  # that test itself is told
                wanted = self._read(find_wish(), directory)
                self._expected = None if wanted.fresh else wanted.shape

    def _read(self, wish: Mapping[str, Any], directory: Path) -> Wish:
        return read_wish({**self._defaults, **wish}, directory)

    def _make(self, shape: Shape, say: Callable[[str], None], *, fresh: bool = False) -> Disposable:
        with self._agency.hire() as hired:
            return make_disposable(shape, fresh=fresh, say=say, hired=hired)

    def _take_ahead(self, shape: Shape | None) -> Disposable | None:
        """The machine that was made ahead, when it is one of this shape; any other is thrown away, for None each."""
        if self._ahead is None:
            return None
        (made, coming), self._ahead = self._ahead, None
        try:
            machine = coming.result()
        except ControlError:
            return None  # whatever it was, it is met again, and told then
        if made == shape:
            return machine
        self._left.append(self._leaving.submit(machine.discard))
        return None

    def assign(self, test: str, machine: Machine) -> None:
        """Note whose machine it is."""
        self._of_test[test].append(machine)

    def of_test(self, test: str) -> Sequence[Machine]:
        return tuple(self._of_test.get(test, ()))

    def keep(self, machine: Machine) -> str:
        """Let a machine go on when all is over, and say how it is entered. Raises ControlError."""
        machine.disposable.keep()
        machine.is_kept = True
        command = f"unhinged -c {machine.disposable.configuration}"
        return f"{command} exec {machine.name} -t -- sh  (throw it away: {command} discard {machine.name})"

    def throw_away(self, machines: Sequence[Machine]) -> None:
        """End machines that are not kept; nobody waits for it."""
        for test, its in list(self._of_test.items()):
            if left := [machine for machine in its if machine not in machines]:
                self._of_test[test] = left
            else:
                del self._of_test[test]
        for machine in machines:
            if not machine.is_kept:
                self._left.append(self._leaving.submit(machine.disposable.discard))

    def close(self) -> None:
        """Wait until all has gone. Raises what kept a machine from it."""
        self._take_ahead(None)
        self._agency.close()
        self._coming.shutdown()
        self._leaving.shutdown()
        for each in self._left:
            each.result()


def _say_nothing(line: str) -> None:
    """What is made ahead is nobody's business yet."""
