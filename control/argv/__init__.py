"""From facts to QEMU's command line (floor 2): pure, no I/O, no clock, no environment."""

from control.argv.build import AGENT_PORT, build_argv

__all__ = ["AGENT_PORT", "build_argv"]
