"""A browser that a person could use: the distribution's Chromium, headless, at the pages of a server that runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qemu.fleets import Desk, open_desk
from tests.webserver import Server, run_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MACHINES = """
[vm.web]
memory = "256M"
accel = "tcg"

[vm.copying]
memory = "256M"
accel = "tcg"
clipboard = true

[vm.shell]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
env = { PS1 = "ready> " }
"""
WITHIN_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. `--no-sandbox`, because tests run as root where CI does; the pages are ours.

    Of one module: Playwright keeps a running event loop in this thread, beside which no asynchronous test could run.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    directory = Path(tmp_path_factory.mktemp("browser"))
    with open_desk(directory) as desk:
        desk.write(MACHINES)
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


@pytest.fixture(scope="module")
def server(desk: Desk) -> Iterator[Server]:
    with run_server(desk) as server:
        yield server


class Visitor:
    """Somebody's browser at a server: pages of one session, whose faults are kept."""

    def __init__(
        self, browser: Browser, server: Server, *, width: int = 1400, height: int = 900, dark: bool = False
    ) -> None:
        self.server = server
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light",
            permissions=["clipboard-read", "clipboard-write"], accept_downloads=True,
        )  # fmt: skip
        self.context.set_default_timeout(WITHIN_MS)
        self.faults: list[str] = []

    def open(self, path: str = "/") -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._hear)
        page.goto(self.server.origin + path)
        return page

    def _hear(self, message: object) -> None:
        text = str(getattr(message, "text", ""))
        if "Content Security Policy" in text or "Refused to" in text:
            self.faults.append(text)

    def log_in(self) -> Page:
        page = self.open(f"/?token={self.server.token}")
        page.wait_for_selector(".card")
        return page

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors; what their pages complained of fails the test."""
    visitors: list[Visitor] = []

    def make(**how: object) -> Visitor:
        visitors.append(Visitor(browser, server, **how))  # type: ignore[arg-type]
        return visitors[-1]

    yield make
    for visitor in visitors:
        visitor.close()
    assert [fault for visitor in visitors for fault in visitor.faults] == []
