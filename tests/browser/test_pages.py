"""The pages as people use them: a real browser, a real guest, real consoles and screens."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.conftest import Visitor
from tests.qemu.fleets import Desk, finish
from tests.webserver import Server, run_server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]


def card(page: Page, name: str) -> Locator:
    return page.locator(f'.card[aria-label="{name}"]')


def see_to_it_that_it_runs(page: Page, name: str) -> None:
    """On the dashboard: start a machine that does not run, by its button."""
    start = card(page, name).get_by_role("button", name="Start")
    if start.count():
        start.click()
    card(page, name).locator(".pill.RUNNING").wait_for()


def wait_for_text(page: Page, wanted: str) -> None:
    """Wait until the terminal of the page shows a line that begins with `wanted`."""
    page.wait_for_function(
        """(wanted) => [...document.querySelectorAll(".xterm-rows > div")]
            .some((row) => row.textContent.replaceAll("\\u00a0", " ").startsWith(wanted))""",
        arg=wanted,
    )


def type_in(page: Page, place: str, text: str) -> None:
    page.locator(f"{place} .xterm-helper-textarea").focus()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def picture(page: Page) -> str:
    """A digest of what noVNC shows."""
    data: str = page.evaluate("document.querySelector('.screen-view canvas').toDataURL()")
    return hashlib.sha256(data.encode()).hexdigest()


@pytest.fixture
def running(visit: Visit) -> tuple[Visitor, Page]:
    """Somebody logged in, and the guest up; started from the page where it does not run."""
    visitor = visit()
    page = visitor.log_in()
    see_to_it_that_it_runs(page, "web")
    page.goto(visitor.server.origin + "/vm/web")
    wait_for_text(page, "unhinged login:")
    return visitor, page


def test_a_person_logs_in_starts_a_machine_and_works_with_it(running: tuple[Visitor, Page]) -> None:
    _, page = running
    assert "token" not in page.url
    page.get_by_role("tab", name="shell").click()
    wait_for_text(page, "/ #")
    type_in(page, "#console", "echo $((6*7))")
    wait_for_text(page, "42")
    page.get_by_label("a command for the guest's shell").fill("echo out; echo err >&2; exit 3")
    page.get_by_role("button", name="Run", exact=True).click()
    output = page.locator(".output")
    output.get_by_text("exit code 3").wait_for()
    assert "out" in output.inner_text() and "err" in output.locator(".err").inner_text()
    page.locator(".messages li").first.wait_for()
    assert page.locator(".timeline .track").count() >= 3


def test_the_screen_changes_with_a_key(running: tuple[Visitor, Page]) -> None:
    _, page = running
    page.locator(".screen-view canvas").wait_for()
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    settle(page)
    before = picture(page)
    page.locator(".screen-view canvas").click()
    page.keyboard.type("root")
    page.wait_for_function(
        "(before) => document.querySelector('.screen-view canvas').toDataURL() !== before",
        arg=page.evaluate("document.querySelector('.screen-view canvas').toDataURL()"),
    )
    page.keyboard.press("Enter")
    settle(page)
    assert picture(page) != before


def settle(page: Page) -> None:
    """Wait until the screen stands still: a cursor that blinks counts as that after some looks."""
    last, deadline = "", time.monotonic() + 10
    while (now := picture(page)) != last and time.monotonic() < deadline:
        last = now
        page.wait_for_timeout(400)


def test_special_keys_and_pasted_text_reach_the_guest(running: tuple[Visitor, Page]) -> None:
    """Ctrl-Alt-F2 leads to the guest's second screen terminal, where a program waits for a line and keeps it."""
    _, page = running
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    run(page, "(setsid sh -c 'head -n 1 </dev/tty2 >/tmp/typed' >/dev/null 2>&1 &); sleep 0.5")
    page.locator("#screen").get_by_role("button", name="Keys").click()
    page.get_by_role("menuitem", name="Ctrl-Alt-F2").click()
    wait_until_said(page, "cat /sys/class/tty/tty0/active", "tty2")
    page.locator("#screen").get_by_role("button", name="Paste…").click()
    page.get_by_label("Paste into the guest").fill("Hello, World! 1+1=2\n")
    page.get_by_role("button", name="Paste", exact=True).click()
    wait_until_said(page, "cat /tmp/typed", "Hello, World! 1+1=2\n")
    run(page, "chvt 1")


def run(page: Page, command: str) -> str:
    """Run a command in the guest as the page's own script would ask for it, and return what it said."""
    answer: dict[str, Any] = page.evaluate(
        """async (command) => (await fetch("/api/vms/web/exec", { method: "POST",
            body: JSON.stringify({ argv: ["/bin/sh", "-c", command] }) })).json()""",
        command,
    )
    return str(answer["stdout"])


def wait_until_said(page: Page, command: str, wanted: str) -> None:
    """Run a command in the guest again and again until it says `wanted`: what is waited for has no event here."""
    deadline = time.monotonic() + 30
    while wanted not in (said := run(page, command)):
        assert time.monotonic() < deadline, said
        page.wait_for_timeout(300)


def test_files_go_up_and_come_down(running: tuple[Visitor, Page], tmp_path: Path) -> None:
    _, page = running
    data = bytes(range(256)) * 5000
    source = tmp_path / "a file, ünd 'more'.bin"
    source.write_bytes(data)
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Upload…").click()
    chosen.value.set_files(source)
    entry = page.locator("table.files").get_by_role("button", name=source.name)
    entry.wait_for()
    assert hashlib.sha256(data).hexdigest() in run(page, "sha256sum /root/*.bin")
    with page.expect_download() as download:
        entry.click()
    assert download.value.suggested_filename == source.name
    assert Path(download.value.path()).read_bytes() == data
    with page.expect_download() as download:
        page.get_by_label("files").get_by_role("button", name="Download").click()
    assert source.name.encode() in Path(download.value.path()).read_bytes()
    page.get_by_label("a directory of the guest").fill("/nowhere")
    page.get_by_role("button", name="Look").click()
    page.locator("#told .bad").first.wait_for()


def test_two_browsers_are_at_one_console(visit: Visit) -> None:
    one, other = visit(), visit()
    first, second = one.log_in(), other.log_in()
    see_to_it_that_it_runs(first, "shell")
    for page in (first, second):
        page.goto(one.server.origin + "/vm/shell")
        wait_for_text(page, "ready>")
    type_in(first, "#console", "echo $((6*7))")
    for page in (first, second):
        wait_for_text(page, "42")
    type_in(second, "#console", "echo lost")
    second.get_by_text("has the keyboard").wait_for()
    second.get_by_role("button", name="Take the keyboard").click()
    second.wait_for_function("() => globalThis.console_?.turn === 'yours'")
    type_in(second, "#console", "echo $((7*7))")
    wait_for_text(first, "49")
    first.get_by_text("has the keyboard").wait_for()


def test_pages_go_on_after_the_server_was_away(visit: Visit, server: Server) -> None:
    """A second server of the same machines takes the place of one that has ended."""
    desk = server.desk
    with run_server(desk) as away:
        port = away.port
        visitor = Visitor(visit().context.browser, away)  # type: ignore[arg-type]
        try:
            page = visitor.log_in()
            see_to_it_that_it_runs(page, "shell")
            page.goto(away.origin + "/vm/shell")
            wait_for_text(page, "ready>")
            type_in(page, "#console", "echo be''fore")
            wait_for_text(page, "before")
            position = page.evaluate("globalThis.console_?.position")
        except BaseException:
            visitor.close()
            raise
    page.locator(".notice:not([hidden])").wait_for()
    with run_server(desk, port=port):
        page.wait_for_function(
            "() => globalThis.console_?.socket?.readyState === 1 && document.querySelector('.notice').hidden"
        )
        assert page.evaluate("globalThis.console_?.position") >= position
        type_in(page, "#console", "echo af''ter")
        wait_for_text(page, "after")
        text = page.evaluate(
            """() => { const { active } = console_.terminal.buffer;
                const rows = Array.from({ length: active.length },
                    (_, at) => active.getLine(at).translateToString(true));
                return rows.join("\\n"); }"""
        )
        assert len(re.findall(r"^before$", text, re.M)) == 1, "what was shown is not shown again"
        visitor.close()


def test_a_machine_that_is_stopped_and_started_again_comes_back(running: tuple[Visitor, Page]) -> None:
    _, page = running
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    page.get_by_role("button", name="Stop").click()
    page.locator(".head .pill.STOPPED").wait_for()
    page.locator("#screen .over:not([hidden])").wait_for()
    page.get_by_role("button", name="Start").click()
    page.locator(".head .pill.RUNNING").wait_for()
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    wait_for_text(page, "unhinged login:")


def test_who_looks_has_no_buttons_and_is_refused_them(
    visit: Visit, server: Server, running: tuple[Visitor, Page]
) -> None:
    """By a link to one machine: the page offers nothing that does anything, and the server refuses it besides."""
    _, page = running
    path = page.evaluate(
        """async () => { const body = '{"minutes": 5}';
            return (await (await fetch("/api/vms/web/shares", { method: "POST", body })).json()).path; }"""
    )
    guest = visit()
    seen = guest.open(path)
    seen.wait_for_url("**/vm/web")
    wait_for_text(seen, "unhinged login:")
    seen.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    for name in ("Stop", "Pause", "Run", "Upload…", "Paste…", "Keys", "More"):
        assert seen.get_by_role("button", name=name, exact=True).count() == 0, name
    assert seen.get_by_role("tab", name="shell").count() == 0
    status = seen.evaluate("""async () => (await fetch("/api/vms/web/stop", { method: "POST", body: "{}" })).status""")
    assert status == 403
    seen.evaluate("screen_.rfb.viewOnly = false")  # as somebody would who does not want to be held back by the page
    for who, text in ((seen, "zzzz"), (page, "yyyy")):
        who.locator(".screen-view canvas").click()
        who.keyboard.type(text)
    # What an operator types after it arrives, so what the guest typed before that would have too.
    wait_until_said(page, "cat /dev/vcs1", "yyyy")
    assert "zzzz" not in run(page, "cat /dev/vcs1")


def test_a_flood_in_five_tabs_leaves_a_page_that_answers(visit: Visit) -> None:
    visitor = visit()
    page = visitor.log_in()
    see_to_it_that_it_runs(page, "shell")
    page.goto(visitor.server.origin + "/vm/shell")
    wait_for_text(page, "ready>")
    others = [visitor.open("/vm/shell") for _ in range(4)]
    for other in others:
        wait_for_text(other, "ready>")
    page.bring_to_front()
    type_in(page, "#console", "timeout 10 sh -c 'while :; do ls -lR /usr/share; done'; echo; echo do''ne")
    page.wait_for_function("() => globalThis.console_?.position > 2000000")
    took = page.evaluate(
        """async () => { const times = [];
            for (let i = 0; i < 20; i += 1) {
              const begun = performance.now();
              await new Promise((resolve) => { setTimeout(resolve, 0); });
              times.push(performance.now() - begun);
              await new Promise((resolve) => { setTimeout(resolve, 50); });
            }
            return times.sort((one, other) => one - other)[10]; }"""
    )
    assert took < 1000, "the page's own clock has stopped"
    wait_for_text(page, "done")
    assert page.evaluate("performance.memory.usedJSHeapSize") < 400_000_000


def test_several_consoles_are_switched_by_keys(visit: Visit) -> None:
    visitor = visit()
    page = visitor.log_in()
    page.goto(visitor.server.origin + "/consoles#shell:console,web:ttyS0")
    page.wait_for_function("() => globalThis.consoles?.size === 2 && [...consoles.values()].every((each) => each.view)")
    page.keyboard.press("Alt+1")
    page.locator('.panel.active[aria-label="console shell:console"]').wait_for()
    page.keyboard.press("Alt+2")
    page.locator('.panel.active[aria-label="console web:ttyS0"]').wait_for()
    page.keyboard.press("Control+]")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "tab"


def test_a_page_is_used_by_keys_alone(visit: Visit) -> None:
    """From the top of the dashboard, Tab reaches the button that starts a machine, and Enter starts it."""
    visitor = visit()
    page = visitor.log_in()
    if card(page, "shell").get_by_role("button", name="Stop").count():
        card(page, "shell").get_by_role("button", name="Stop").click()
    card(page, "shell").get_by_role("button", name="Start").wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(
            """() => { const { activeElement } = document;
                const card = activeElement.closest(".card")?.getAttribute("aria-label");
                return activeElement.textContent === "Start" && card === "shell"; }"""
        ):
            break
    page.keyboard.press("Enter")
    card(page, "shell").locator(".pill.RUNNING").wait_for()


def test_wrong_tokens_are_told_on_the_page(visit: Visit) -> None:
    page = visit().open("/?token=guess")
    page.get_by_text("this token is not the one").wait_for()
    page.get_by_label(re.compile("Token")).fill("another guess")
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("this token is not the one").wait_for()


@pytest.mark.parametrize(("width", "height"), [(390, 800), (1400, 900)])
@pytest.mark.parametrize("path", ["/", "/vm/web", "/consoles#shell:console", "/about", "/login"])
def test_nothing_stands_out_of_a_page(visit: Visit, path: str, width: int, height: int) -> None:
    """On a phone nothing has to be scrolled sideways."""
    visitor = visit(width=width, height=height)
    visitor.log_in()
    page = visitor.open(path)
    page.wait_for_selector("main :visible")
    page.wait_for_timeout(700)  # until what comes after the first paint has its place
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_snapshot_is_taken_gone_back_to_and_forgotten(running: tuple[Visitor, Page]) -> None:
    _, page = running
    panel = page.get_by_label("snapshots")
    run(page, "echo before > /tmp/kept")
    panel.get_by_label("a name for the snapshot").fill("clean")
    panel.get_by_role("button", name="Take one").click()
    panel.get_by_text("clean", exact=True).wait_for()
    run(page, "echo after > /tmp/kept")
    panel.get_by_role("button", name="Restore").click()
    page.get_by_text("back at clean").wait_for()
    assert run(page, "cat /tmp/kept") == "before\n"
    type_in(page, "#console", "")  # the console is the same one still
    wait_for_text(page, "unhinged login:")
    panel.get_by_role("button", name="delete clean").click()
    panel.get_by_text("There is none yet").wait_for()


def test_the_card_takes_a_snapshot_and_shows_an_address(running: tuple[Visitor, Page]) -> None:
    visitor, page = running
    page.goto(visitor.server.origin)
    card(page, "web").get_by_text("10.0.2.15").wait_for()
    card(page, "web").get_by_role("button", name="Snapshot").click()
    page.get_by_text("kept as").wait_for()
    page.goto(visitor.server.origin + "/vm/web")
    panel = page.get_by_label("snapshots")
    panel.get_by_role("button", name="Delete").click()
    panel.get_by_text("There is none yet").wait_for()


def test_the_clipboard_crosses_both_ways(visit: Visit, desk: Desk) -> None:
    """The guest has no desktop: a program speaks for it at the port of SPICE's agent (vdagent.py)."""
    visitor = visit()
    page = visitor.log_in()
    see_to_it_that_it_runs(page, "copying")
    page.goto(visitor.server.origin + "/vm/copying")
    page.wait_for_function("() => document.querySelector('#screen .over')?.hidden")
    wait_for_text(page, "unhinged login:")
    assert desk.run("put", "copying", str(Path(__file__).with_name("vdagent.py")), "/root/").exit_code == 0

    giving = desk.begin("exec", "copying", "--", "python3", "/root/vdagent.py", "give", "Grüße from the guest")
    copy = page.get_by_role("button", name="Copy from guest")
    copy.wait_for()
    assert finish(giving).exit_code == 0
    copy.click()
    page.get_by_text("copied", exact=True).wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "Grüße from the guest"

    taking = desk.begin("exec", "copying", "--", "python3", "/root/vdagent.py", "take")
    page.wait_for_timeout(1000)  # the program says nothing of that it listens now
    page.locator("#screen").get_by_role("button", name="Paste…").click()
    page.get_by_label("Paste into the guest").fill("für the guest")
    page.get_by_role("button", name="Paste", exact=True).click()
    # RFB ends a text with a NUL, and QEMU 7.2 hands it on.
    assert finish(taking).stdout.rstrip("\0\n") == "für the guest"


def test_a_machine_that_shares_its_clipboard_is_refused_a_snapshot_with_the_reason(desk: Desk) -> None:
    done = desk.run("snapshot", "save", "copying")
    assert done.exit_code == 1
    assert "copying shares its clipboard" in done.stderr
    assert not list(desk.files("copying").snapshots.glob("*"))
