"""The key by which we log in to one VM (floor 2): made with ssh-keygen, readable by its owner only."""

from __future__ import annotations

from pathlib import Path

from control.errors import HostError
from control.streams import Runner

KEYGEN_TIMEOUT_S = 30.0


async def make_key(private: Path, run: Runner) -> str:
    """Return the public half of the key at `private`, one line; the key is made when it is not there.

    Raises:
        HostError: ssh-keygen is missing, or failed (its own words); no half key is left under that name.
    """
    public = private.with_name(f"{private.name}.pub")
    if not (private.exists() and public.exists()):
        # Two commands may come at once: each makes its own, and the last one's pair stands.
        fresh = private.with_name(f"{private.name}.new")
        for half in (fresh, fresh.with_name(f"{fresh.name}.pub")):
            half.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "unhinged-vm", "-f", str(fresh)]
        made = await run(argv, timeout_s=KEYGEN_TIMEOUT_S)
        if made.return_code != 0:
            words = made.stderr.decode("utf-8", "replace").strip().splitlines()
            raise HostError(f"ssh-keygen made no key: {words[-1] if words else 'it said nothing'}")
        fresh.with_name(f"{fresh.name}.pub").replace(public)
        fresh.replace(private)
    return public.read_text(encoding="utf-8").strip()
