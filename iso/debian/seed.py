"""Makes the seed ISO that brings agent and SSH key into a cloud image (room: image; called by `iso/debian/build.py`).

cloud-init looks for a disk with the label `cidata` at a machine's first boot.
Source: cloud-init documentation, "NoCloud".
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from iso.agent import content, deb, pyz
from iso.failure import BuildError
from iso.newc import file
from iso.programs import require, run
from iso.progress import Progress

_PUBLIC_KEY = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n\r]*)?")
_EPOCH_DATE = "2024010100000000"

# runcmd comes last of all, so packages and network are there; the ISO is not mounted any more by then.
_USER_DATA = """#cloud-config
ssh_authorized_keys:
  - {key}
disable_root: false
runcmd:
  - [mkdir, -p, /run/unhinged-seed]
  - [mount, -o, ro, LABEL=cidata, /run/unhinged-seed]
  - [sh, /run/unhinged-seed/install.sh]
  - [umount, /run/unhinged-seed]
"""


def read_key(path: Path) -> str:
    """Return the public key in a file.

    Raises:
        BuildError: It cannot be read, or holds something else; a private key is named as such.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise BuildError(f"the key {path} cannot be read: {error}") from error
    if "PRIVATE KEY" in text:
        raise BuildError(f"{path} is a private key, which must stay where it is", hint=f"try KEY={path}.pub")
    if not _PUBLIC_KEY.fullmatch(text):
        raise BuildError(
            f"{path} does not hold exactly one public SSH key", hint="as ssh-keygen writes it into NAME.pub"
        )
    return text


def make_key(directory: Path, progress: Progress) -> str:
    """Return the project's own public key; it is made when there is none, and only its owner reads the private half."""
    private = directory / "id_ed25519"
    public = directory / "id_ed25519.pub"
    if not (private.exists() and public.exists()):
        require(("ssh-keygen",))
        progress.step(f"making an SSH key: {private}")
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        for half in (private, public):
            half.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "unhinged-vm", "-f", str(private)])
    return read_key(public)


def make_seed(key: str, scratch: Path) -> bytes:
    """Return the ISO; the same key and agent always give the same bytes.

    Args:
        key: The public key, one line.
        scratch: An empty directory.
    """
    version = content.read_version()
    files = {
        "install.sh": content.read_script("seed-install.sh").encode(),
        "unhinged-agent.deb": deb.make_deb(version, scratch),
        "unhinged-agent.pyz": pyz.make_pyz(version),
        "unhinged-agent.service": content.own("unhinged-agent.service").data,
        "60-unhinged-agent.rules": content.own("60-unhinged-agent.rules").data,
        # A comment is for people; as YAML it would have to be quoted.
        "user-data": _USER_DATA.format(key=" ".join(key.split()[:2])).encode(),
    }
    total = hashlib.sha256()
    for name, data in sorted(files.items()):
        total.update(f"{name} {len(data)} ".encode() + data)
    # cloud-init acts once for each identity: a seed with something new in it is a new one.
    files["meta-data"] = f"instance-id: unhinged-{total.hexdigest()[:16]}\n".encode()
    root, target = scratch / "seed", scratch / "seed.iso"
    content.write({name: file(data) for name, data in files.items()}, root)
    run(
        [
            "xorriso", "-as", "mkisofs", "-quiet", "-o", str(target), "-R", "-J", "-V", "cidata",
            f"--modification-date={_EPOCH_DATE}", "--set_all_file_dates", _EPOCH_DATE, "-uid", "0", "-gid", "0",
            str(root),
        ],
        environment={"SOURCE_DATE_EPOCH": str(content.EPOCH)},
    )  # fmt: skip
    return target.read_bytes()
