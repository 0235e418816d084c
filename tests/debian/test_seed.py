"""The seed ISO in somebody else's cloud image: a Debian with cloud-init and no agent of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from guest.agent import VERSION
from tests.debian.debianvm import DebianVM

REPOSITORY = Path(__file__).resolve().parents[2]
DOOR = [sys.executable, str(REPOSITORY / "iso/debian/build.py")]


def test_at_its_first_boot_a_cloud_image_gets_the_agent_and_the_key(
    cloud_image: Path, directory: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    output = tmp_path / "out" / "image"
    subprocess.run([*DOOR, "seed", "--key", f"{key}.pub", "--output", str(output)], check=True, timeout=60)
    seed = f"file={output}/seed.iso,if=virtio,format=raw,readonly=on"
    with DebianVM(directory, disk=cloud_image, extra=["-drive", seed]) as vm:
        vm.boot()
        assert vm.call("get_agent_info")["version"] == VERSION
        public = Path(f"{key}.pub").read_text().split()[1]
        assert public in vm.run("cat /root/.ssh/authorized_keys")
        # The agent is there before cloud-init has ended; it says itself when it has, and how.
        assert "status: done" in vm.run("cloud-init status --wait")
        assert vm.run("dpkg-query --show --showformat='${Status}' unhinged-agent") == "install ok installed"
        assert vm.run("findmnt --noheadings /run/unhinged-seed || echo none") == "none\n"
