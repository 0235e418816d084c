"""How a VM is reached by ssh (floor 2)."""

from control.ssh.config import SshTarget, build_ssh_config, find_control_path

__all__ = ["SshTarget", "build_ssh_config", "find_control_path"]
