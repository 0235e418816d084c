"""`unhinged img build` of a cloud image: cloud-init does in the build boot what the templates say, and a VM has it."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

from tests.qemu.fleets import Desk, open_desk

USER_DATA = """#cloud-config
hostname: {{.name}}
write_files:
  - path: /etc/nonce
    content: "{{.nonce}}\\n"
  - path: /etc/systemd/system/tell.service
    content: |
      [Service]
      ExecStart=/bin/sh -c 'echo "`cat /etc/nonce` on `hostname`" >/dev/ttyS0'
      [Install]
      WantedBy=multi-user.target
runcmd:
  - [systemctl, enable, tell.service]
{{- range .commands}}
  - {{.}}
{{- end}}
power_state: {mode: poweroff}
"""
BUILD_S, BOOT_S = 600, 240


def test_a_cloud_image_does_as_it_was_told_and_a_vm_shows_it(cloud_image: Path, directory: Path) -> None:
    nonce = secrets.token_hex(8)
    (directory / "user-data.tpl").write_text(USER_DATA)
    with open_desk(directory) as desk:
        desk.write(f"""
[img.cloud]
builder = "cloud-init"
img_size = "9G"
base_img = {{ path = "{cloud_image}" }}
env = {{ name = "told", nonce = "{nonce}", commands = ["sync"] }}
templates = [{{ template = "user-data.tpl", output = "user-data" }}]
[vm.one]
image = "cloud"
agent = false
net = "none"
""")
        [row] = build(desk)["images"]
        assert row["outcome"] == "built", row["error"]
        assert nonce not in (directory / ".unhinged/img.cloud/build.log").read_text(errors="replace")
        assert desk.run("start", "one").exit_code == 0
        log, deadline = desk.files("one").serial_log, time.monotonic() + BOOT_S
        while f"{nonce} on told" not in log.read_text(errors="replace") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert f"{nonce} on told" in log.read_text(errors="replace")


def build(desk: Desk) -> dict[str, list[dict[str, object]]]:
    with desk.begin("--json", "img", "build", "cloud") as process:
        stdout, stderr = process.communicate(timeout=BUILD_S)
    assert "Traceback" not in stderr
    document: dict[str, list[dict[str, object]]] = json.loads(stdout)
    return document
