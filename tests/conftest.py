"""What all tiers share: needs that skip with their cure, instances whose files are shown on failure, and the check that
a test left nothing behind.

A tier is a folder: `tests/qemu` gets the mark `qemu`, `tests/boot` the mark `boot`, and so on.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import inspect
import os
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from control.paths import IMAGE, cache_directory, runtime_directory

# How long one example takes says nothing on a machine that boots guests beside it; pytest-timeout bounds each test.
settings.register_profile("unhinged", deadline=None)
settings.load_profile("unhinged")

# What `make test ARGS=…` was told is not for the makes that tests start.
for _name in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "WORKERS"):
    os.environ.pop(_name, None)

# A shell starts what runs in its background with SIGINT ignored, and so would be what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

TIERS = ("qemu", "boot", "browser", "kvm", "lua")
FDS_TOLERATED = 2
"""Descriptors a library may open once and keep; a leak of ours repeats, and is seen by the next test of its kind."""

SETTLE_S = 2.0
"""How long a child that was told to end may take to be gone."""

EVIDENCE = ("argv.json", "serial", "qemu.log", "messages.jsonl", "state.json")


# -- needs -------------------------------------------------------------------------------------------------------------


def _find_qemu() -> bool:
    return shutil.which("qemu-system-x86_64") is not None


def _find_image() -> bool:
    return all((IMAGE / name).is_file() for name in ("vmlinux", "initrd", "unhinged.iso", "image.json"))


def _find_ovmf() -> bool:
    return Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists()


def _find_installer() -> bool:
    return Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/linux").exists()


def _find_isolinux() -> bool:
    files = (Path("/usr/lib/ISOLINUX/isolinux.bin"), Path("/usr/lib/syslinux/modules/bios/ldlinux.c32"))
    return all(file.exists() for file in files) and shutil.which("xorriso") is not None


def _find_lua() -> bool:
    return shutil.which("lua5.4") is not None and Path("/usr/share/lua/5.4/socket.lua").exists()


def _find_browser() -> bool:
    return shutil.which("chromium") is not None and importlib.util.find_spec("playwright") is not None


@functools.cache
def _find_kvm() -> bool:
    """Whether guest code runs under KVM here; a device that opens proves nothing."""
    from control.accel.choice import choose_accelerator
    from control.process.run import run

    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        return False
    return asyncio.run(choose_accelerator("auto", Path(qemu), run, cache_directory())).name == "kvm"


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "qemu": (_find_qemu, "QEMU is not installed: make deps-install-essential"),
    "image": (_find_image, "the built-in guest image is not built: make image"),
    "ovmf": (_find_ovmf, "the UEFI firmware is not installed: make deps-install-test"),
    "installer": (_find_installer, "the Debian installer is not installed: make deps-install-test"),
    "isolinux": (_find_isolinux, "isolinux or xorriso is not installed: make deps-install-test"),
    "lua": (_find_lua, "Lua 5.4 or LuaSocket is not installed: make deps-install-lua"),
    "browser": (_find_browser, "Chromium or playwright is not installed: make deps-install-browser"),
    "kvm": (_find_kvm, "KVM does not run guest code here: make doctor says why"),
}
NEEDS_OF_TIER = {"qemu": ("qemu",), "boot": ("qemu", "image"), "kvm": ("qemu", "kvm"), "lua": ("lua",),
                 "browser": ("browser", "qemu", "image")}  # fmt: skip


def _require(name: str) -> None:
    """Skip when the need `name` is missing; in CI, where all but KVM is owed, fail."""
    find, cure = NEEDS[name]
    if find():
        return
    if os.environ.get("CI") == "true" and name != "kvm":
        pytest.fail(f"CI lacks something: {cure}", pytrace=False)
    pytest.skip(cure)


@pytest.fixture
def public_path(tmp_path: Path) -> Path:
    """A directory of the test's own that every user of this machine can reach."""
    top = Path(tempfile.gettempdir())
    for directory in (tmp_path, *tmp_path.parents):
        if top in directory.parents:
            directory.chmod(0o755)
    return tmp_path


@pytest.fixture
def need() -> Callable[[str], None]:
    """Call it with a name from `NEEDS`: the test is skipped, with the cure, when that is missing."""
    return _require


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        tier = item.path.relative_to(here).parts[0]
        if tier in TIERS and item.get_closest_marker(tier) is None:
            item.add_marker(tier)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for tier, needs in NEEDS_OF_TIER.items():
        if item.get_closest_marker(tier) is not None:
            for name in needs:
                _require(name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    # From the reports, because the tests ran in other processes.
    skipped = terminalreporter.stats.get("skipped", ())
    missing = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if missing:
        terminalreporter.section("what this host lacks")
    for cure, count in missing.items():
        terminalreporter.line(f"{count} test(s) did not run: {cure}")


# -- instances ---------------------------------------------------------------------------------------------------------

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        workdir = getattr(item, "funcargs", {}).get("workdir")
        if workdir is not None:
            report.sections.append(("files of the instances", "\n".join(_list_evidence(workdir)) or "none"))
    return report


def _list_evidence(workdir: Path) -> list[str]:
    return [str(path) for name in EVIDENCE for path in sorted(workdir.rglob(name)) if path.is_file()]


@pytest.fixture
def workdir(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A private directory with a short path, to run VMs in. Kept when the test fails, for its evidence.

    Short, because pytest's own directories can be longer than an AF_UNIX address may be.
    """
    path = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    yield path
    if request.node.stash.get(_FAILED, False):
        return
    sockets = [str(found) for found in path.rglob("*") if stat.S_ISSOCK(found.lstat().st_mode)]
    shutil.rmtree(path)
    if sockets:
        pytest.fail(f"sockets were left behind: {sockets}", pytrace=False)


@pytest.fixture
def runtime(workdir: Path) -> Path:
    """Where the instances of a test live: `.unhinged` in its `workdir`."""
    return runtime_directory(workdir)


# -- nothing is left behind --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """See to it that the test left no child process and no open descriptor."""
    children, descriptors = _find_children(), _list_descriptors()
    yield
    deadline = time.monotonic() + SETTLE_S
    while (left := _find_children() - children) and time.monotonic() < deadline:
        time.sleep(0.01)
    if left:
        pytest.fail(f"child processes were left behind: {[_describe(pid) for pid in left]}", pytrace=False)
    opened = _find_new_descriptors(descriptors)
    if len(opened) > FDS_TOLERATED:
        gc.collect()  # what a traceback or a cycle held is no leak
        opened = _find_new_descriptors(descriptors)
    if len(opened) > FDS_TOLERATED:
        pytest.fail(f"descriptors were left open: {opened}", pytrace=False)


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Let an asynchronous test also answer for the tasks it started."""
    function = getattr(item, "obj", None)
    marker = item.get_closest_marker("asyncio")
    # On a loop that tests share, tasks of what they share come and go.
    shared = marker is not None and marker.kwargs.get("loop_scope", "function") != "function"
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(function) and not shared:
        item.obj = _ending_without_tasks(function)
    return (yield)


def _ending_without_tasks(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        await asyncio.sleep(0)  # what is done but for its last callback counts as done
        left = [task for task in asyncio.all_tasks() - before if not task.done()]
        if left:
            pytest.fail(f"tasks were left behind: {left}", pytrace=False)

    return run


def _find_children() -> set[int]:
    """The numbers of our child processes, zombies among them."""
    children = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == os.getpid():
            children.add(int(entry.name))
    return children


def _describe(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        command = "gone by now"
    return f"{pid}: {command or 'a zombie'}"


def _list_descriptors() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue  # the descriptor of this very listing
    return found


def _find_new_descriptors(before: dict[int, str]) -> dict[int, str]:
    return {number: target for number, target in _list_descriptors().items() if before.get(number) != target}
