"""Takes the pictures of docs/web.md: each page of the web console in light, dark and on a phone, with real guests.

python docs/pictures/draw_web.py        (make pictures)
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Page, sync_playwright

from tests.qemu.fleets import open_desk
from tests.webserver import Server, run_server

MACHINES = """
[vm.web]
memory = "256M"
forward = ["auto:80"]

[vm.database]
memory = "512M"

[vm.build]
memory = "1G"

[vm.router]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
env = { PS1 = "router> ", TERM = "xterm-256color" }
"""
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1400, "height": 880}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1400, "height": 880}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
PLACE = Path(__file__).parent
SETTLE_MS = 3500
"""Until pictures and terminals have come and stand still."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="uh-", dir="/tmp") as directory, open_desk(Path(directory)) as desk:
        desk.write(MACHINES)
        done = desk.run("start", "web", "database", "router", "--wait", "agent")
        if done.exit_code:
            desk.run("start", "web", "database", "--wait", "agent")
            desk.run("start", "router")
        desk.run("send", "router", "echo ready; uname -sr")
        with run_server(desk) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for look, how in LOOKS.items():
                context = browser.new_context(**how)
                take(context.new_page(), server, look)
                context.close()
            browser.close()
        desk.run("kill", "--all")
        desk.wait_until_gone()


def take(page: Page, server: Server, look: str) -> None:
    page.goto(server.origin + "/login")
    save(page, "login", look)
    page.goto(f"{server.url}?token={server.token}")
    page.wait_for_selector(".card")
    save(page, "dashboard", look)
    page.goto(server.origin + "/vm/web")
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    page.get_by_label("a command for the guest's shell").fill("cat /proc/loadavg")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_label("a directory of the guest").fill("/etc")
    page.get_by_role("button", name="Look").click()
    page.locator("table.files tr").first.wait_for()
    save(page, "vm", look, whole=True)
    page.goto(server.origin + "/consoles#web:hvc0,database:ttyS0,router:console,web:ttyS0")
    save(page, "consoles", look)
    page.goto(server.origin + "/about")
    save(page, "about", look)


def save(page: Page, name: str, look: str, *, whole: bool = False) -> None:
    page.wait_for_timeout(SETTLE_MS)
    page.mouse.move(0, 0)
    page.evaluate("() => scrollTo(0, 0)")
    path = PLACE / f"web-{name}-{look}.png"
    page.screenshot(path=path, full_page=whole)
    print(path)


if __name__ == "__main__":
    main()
