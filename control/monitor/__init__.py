"""QEMU's monitor (floor 2): the only room that imports `qemu.qmp`."""

from control.monitor.monitor import Monitor, MonitorEvent, open_monitor

__all__ = ["Monitor", "MonitorEvent", "open_monitor"]
