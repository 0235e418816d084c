"""`unhinged img` on the real QEMU: base images of one sector power off, start again or do nothing at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.errors import EXIT_BOOT_HUNG, EXIT_QEMU_DIED, EXIT_TIMEOUT
from tests.qemu.fleets import HALT, Desk, open_desk

SAY = b"".join(b"\xb0%c\xee" % letter for letter in b"hello\r\n")
"""mov al, letter; out dx, al."""

ON_SERIAL = b"\xba\xf8\x03" + SAY
OFF = b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd"
"""mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt: QEMU's `pc` enters ACPI's S5 with it (hw/acpi/piix4.c)."""

RESET = b"\xb0\xfe\xe6\x64\xf4\xeb\xfd"
"""mov al, 0xfe; out 0x64, al: the keyboard controller resets the machine."""

SIZE = 1 << 20


def sector(code: bytes) -> bytes:
    return (ON_SERIAL + code).ljust(510, b"\0") + b"\x55\xaa"


@pytest.fixture
def desk(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workdir / "cache"))
    with open_desk(workdir) as desk:
        yield desk


def declare(desk: Desk, code: bytes = OFF, more: str = "", *, size: str = "2M") -> None:
    (desk.directory / "base.img").write_bytes(sector(code).ljust(SIZE, b"\0"))
    desk.write(f'[img.cloud]\nbuilder = "cloud-init"\nimg_size = "{size}"\nbase_img = {{ path = "base.img" }}\n{more}')


def build(desk: Desk, *words: str) -> Any:
    document = desk.ask("img_build", "img", "build", *words)
    [row] = document["images"]
    assert document["exit_code"] == (row["error"] or {"exit_code": 0})["exit_code"]
    return row


def state(desk: Desk) -> str:
    return str(desk.ask("img_list", "img", "list")["images"][0]["state"])


def look_at(path: str) -> Any:
    return json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", path]))


def leaves_no_scratch(desk: Desk) -> bool:
    return not list(desk.runtime.glob("img.*/build.*/"))


def test_a_base_image_is_booted_once_and_grown(desk: Desk) -> None:
    declare(desk)
    assert state(desk) == "missing"
    made = build(desk, "cloud")
    assert (made["outcome"], made["state"]) == ("built", "built")
    about = look_at(made["path"])
    assert made["path"].endswith("img.cloud/stage3.img")
    assert (about["format"], about["virtual-size"]) == ("qcow2", 2 * SIZE)
    assert (desk.runtime / "img.cloud" / "build.log").read_text().endswith("hello\n")
    assert leaves_no_scratch(desk)
    assert build(desk, "cloud")["outcome"] == "unchanged"
    assert build(desk, "cloud", "--force")["outcome"] == "built"
    declare(desk, size="3M")
    assert state(desk) == "stale"
    assert build(desk, "--all")["outcome"] == "built"
    assert look_at(made["path"])["virtual-size"] == 3 * SIZE


def test_a_vm_boots_what_was_built(desk: Desk) -> None:
    declare(desk, more='[vm.one]\nimage = "cloud"\nmemory = "64M"\naccel = "tcg"\nagent = false\n')
    refused = desk.run("start", "--paused", "one")
    assert "unhinged img build cloud" in refused.stderr
    build(desk, "cloud")
    desk.start("one")
    assert look_at(str(desk.files("one").overlay))["backing-filename"].endswith("stage3.img")
    desk.run("kill", "one")
    # What the VM wrote lies over the image as it was.
    error = build(desk, "cloud", "--force")["error"]
    assert error["kind"] == "StateError" and str(desk.files("one").overlay) in error["hint"]
    desk.files("one").overlay.unlink()
    assert build(desk, "cloud", "--force")["outcome"] == "built"


@pytest.mark.parametrize(
    ("code", "words", "exit_code", "message"),
    [
        (HALT[:3], ("--timeout", "3"), EXIT_TIMEOUT, "waited 3 s for cloud to power itself off"),
        (RESET, (), EXIT_BOOT_HUNG, "QEMU tells of guest-reset"),
    ],
    ids=["hangs", "starts-again"],
)
def test_a_build_that_fails_leaves_the_older_image(
    desk: Desk, code: bytes, words: tuple[str, ...], exit_code: int, message: str
) -> None:
    declare(desk)
    path = Path(build(desk, "cloud")["path"])
    before = path.read_bytes()
    declare(desk, code)
    row = build(desk, "cloud", *words)
    assert (row["outcome"], row["state"]) == ("failed", "stale")
    assert row["error"]["exit_code"] == exit_code and message in row["error"]["message"]
    assert any(line.endswith("hello") for line in row["error"]["evidence"]) and row["error"]["hint"]
    assert path.read_bytes() == before and leaves_no_scratch(desk) and not desk.processes()


def test_a_qemu_that_refuses_its_words(desk: Desk) -> None:
    declare(desk, more='build_args = ["-device", "no-such-thing"]\n')
    row = build(desk, "cloud")
    assert row["error"]["exit_code"] == EXIT_QEMU_DIED
    assert "no-such-thing" in row["error"]["evidence"][-1] and row["error"]["hint"] == "look at build_args"
    assert row["state"] == "missing"


def test_a_disk_that_is_full_ends_the_build_at_once(desk: Desk) -> None:
    # What QEMU 7.2 says when its disk lies on a full tmpfs; it stops the guest then, and waits for room.
    event = (
        '{"event": "BLOCK_IO_ERROR", "data": {"nospace": true, "action": "stop", "reason": "No space left on device"}}'
    )
    qemu = desk.directory / "qemu.sh"
    qemu.write_text(
        f'#!/bin/sh\ncase "$*" in *-pidfile*) echo \'{event}\'; exec sleep 60;; esac\nexec qemu-system-x86_64 "$@"\n'
    )
    qemu.chmod(0o755)
    declare(desk, more='[qemu]\nbin = "./qemu.sh"\n')
    error = build(desk, "cloud")["error"]
    assert "there was no room left" in error["message"] and error["kind"] == "HostError" and leaves_no_scratch(desk)


def test_the_words_of_qqmgrs_example_are_taken(desk: Desk) -> None:
    words = ["-m", "{{.memory}}", "-drive", "file={{.img_self}},if=virtio", "-cdrom", "{{.cloud_init_iso}}", "-boot"]
    words += ["order=c", "-nographic", "-netdev", "user,id=net0", "-serial", "mon:stdio", "-name", "{{.who}}"]
    declare(
        desk,
        more=f'build_args = {json.dumps(words)}\nenv = {{ memory = 64 }}\n[vars]\nwho = "{{{{.me}}}}"\nme = "me"\n',
    )
    assert build(desk, "cloud")["outcome"] == "built"
    assert "hello" in (desk.runtime / "img.cloud" / "build.log").read_text()
    declare(desk, more='build_args = ["{{.img_sel}}"]\n')
    assert "build_args: {{.img_sel}} is not defined" in build(desk, "cloud")["error"]["message"]


def test_the_iso_holds_templates_and_downloads(desk: Desk) -> None:
    (desk.directory / "user-data.tpl").write_text("#cloud-config\nhostname: {{.name}}\n")
    (desk.directory / "more.txt").write_text("more")
    checksum = hashlib.sha256(b"more").hexdigest()
    (desk.directory / "hook.py").write_text(
        "import json, sys\nenv = json.loads(sys.stdin.readline())\nprint('noise')\n"
        "print(json.dumps({**env, 'name': env['name'] + '-1'}))\n"
    )
    # The ISO is gone with the build: a QEMU that keeps a copy.
    seen = desk.directory / "seen.iso"
    qemu = desk.directory / "qemu.sh"
    qemu.write_text(
        '#!/bin/sh\nfor word; do case "$word" in file=*cloud-init.iso,*) word=${word#file=}; '
        f'cp "${{word%%,*}}" {seen};; esac; done\nexec qemu-system-x86_64 "$@"\n'
    )
    qemu.chmod(0o755)
    more = f"""env = {{ name = "web" }}
env_hook = {{ interpreter = "python3", script = "hook.py" }}
templates = [{{ template = "user-data.tpl", output = "user-data" }}]
sources = [{{ url = "file://{desk.directory}/more.txt", sha256sum = "{checksum}", filename = "more.txt" }}]
[qemu]
bin = "./qemu.sh"
"""
    declare(desk, more=more)
    assert build(desk, "cloud")["outcome"] == "built"
    argv = ["xorriso", "-osirrox", "on", "-indev", str(seen), "-pvd_info", "-extract", "/", str(desk.directory / "iso")]
    told = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "Volume Id    : cidata" in told.stdout
    files = {path.name: path.read_text() for path in (desk.directory / "iso").iterdir()}
    assert files.pop("meta-data").startswith("instance-id: cloud-")
    assert files == {"user-data": "#cloud-config\nhostname: web-1\n", "more.txt": "more"}
    (desk.directory / "hook.py").write_text("raise SystemExit('no such name')")
    error = build(desk, "cloud")["error"]
    assert "ended with exit code 1" in error["message"] and error["evidence"] == ["no such name"]


def test_a_second_build_of_the_same_image_is_refused(desk: Desk) -> None:
    declare(desk)
    directory = desk.runtime / "img.cloud"
    directory.mkdir(parents=True, mode=0o700)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another command is building it" in build(desk, "cloud")["error"]["message"]
    assert build(desk, "cloud")["outcome"] == "built"


def begin_endless_build(desk: Desk) -> subprocess.Popen[str]:
    declare(desk, HALT[:3])
    process = desk.begin("img", "build", "cloud")
    log = desk.runtime / "img.cloud" / "build.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_a_build_that_is_interrupted_leaves_nothing(desk: Desk) -> None:
    with begin_endless_build(desk) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert leaves_no_scratch(desk) and not desk.processes() and state(desk) == "missing"


def test_a_build_that_is_killed_takes_its_qemu_along(desk: Desk) -> None:
    with begin_endless_build(desk) as process:
        assert desk.processes()
        process.kill()
        process.communicate(timeout=60)
    desk.wait_until_gone()
    declare(desk)
    assert build(desk, "cloud")["outcome"] == "built" and leaves_no_scratch(desk)


def test_the_list_for_people(desk: Desk) -> None:
    declare(desk)
    done = desk.run("img", "list")
    assert re.search(r"^cloud +cloud-init +missing +- +/.*/stage3.img$", done.stdout, re.MULTILINE), done.stdout
    assert not done.stderr
