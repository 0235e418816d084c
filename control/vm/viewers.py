"""Connection files for native viewers (floor 3): what `unhinged view` runs one with, and what the web pages give."""

from __future__ import annotations

from pathlib import Path

HOST_KEYS = "release-cursor=shift+f12"


def build_vv(name: str, socket: Path) -> str:
    """The connection file of remote-viewer. Source: remote-viewer(1), CONNECTION FILE."""
    return "\n".join(
        (
            "[virt-viewer]",
            "type=spice",
            f"unix-path={socket}",
            f"title={name} - %d",
            "secure-attention=ctrl+alt+end",
            HOST_KEYS,
            "delete-this-file=0",
            "",
        )
    )


def build_vnc(server: str) -> str:
    """A `.vnc` file, of a UNIX socket or of HOST::PORT. Source: TigerVNC, which writes such files (vncviewer(1))."""
    return f"TigerVNC Configuration file Version 1.0\n\nServerName={server}\nShared=1\n"
