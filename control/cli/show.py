"""`unhinged list` and `status` (floor 6): what there is, told from the disk and the kernel, and by supervisors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from control.cli.desk import Desk, printable
from control.errors import EXIT_ERROR, ControlError
from control.spec.declaration import VMDeclaration
from control.spec.limits import Limits
from control.spec.network import Forward
from control.vm.forwards import list_forwards
from control.vm.holder import read_state
from control.vm.reach import Seen, connect

STATUS_TIMEOUT_S = 5.0


def list_vms(desk: Desk) -> int:
    rows = []
    for name in desk.fleet.names:
        seen = desk.look(name)
        rows.append(_describe(desk.fleet.vms[name], seen))
    document = {
        "file": str(desk.location.path),
        "runtime": str(desk.runtime),
        "vms": rows,
        "notes": list(desk.fleet.notes),
    }
    for note in () if desk.is_json else desk.fleet.notes:
        desk.note(note)
    width = max([4, *(len(row["name"]) for row in rows)])
    lines = [f"{'NAME':{width}}  STATE     PID      SSH"]
    for row in rows:
        port = (row["ssh"] or {}).get("port") or "-"
        lines.append(f"{row['name']:{width}}  {row['state']:8}  {row['pid'] or '-':<7}  {port}")
    desk.show(document, "\n".join(lines))
    return 0


def status(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all or not desk.options.names)
    found = [_find_status(desk, name) for name in names]
    document = found[0] if len(found) == 1 and desk.options.names else {"vms": found}
    desk.show(document, "\n\n".join(_to_text(each) for each in found))
    return EXIT_ERROR if any(each["state"] == "UNKNOWN" for each in found) else 0


def _describe(vm: VMDeclaration, seen: Seen) -> dict[str, Any]:
    ports = seen.record.ports if seen.record is not None else {}
    return {
        "name": vm.name,
        "kind": vm.kind,
        "state": seen.state,
        "pid": seen.pid,
        "ssh": None if vm.ssh is None else {"port": _find_port(vm, ports)},
        "note": seen.note,
    }


def _find_port(vm: VMDeclaration, ports: dict[str, Any]) -> int | None:
    if vm.ssh is None or vm.ssh.port is None or vm.ssh.is_elsewhere:
        return None
    return ports.get(Forward("auto", vm.ssh.vm_port).key) if vm.ssh.port == "auto" else vm.ssh.port


def _find_status(desk: Desk, name: str) -> dict[str, Any]:
    vm = desk.fleet.vms[name]
    seen = desk.look(name)
    living: dict[str, Any] = {}
    if seen.is_running and seen.foreign is None:
        try:
            with connect(desk.runtime, name) as remote:
                living = remote.call("status", timeout_s=STATUS_TIMEOUT_S)
        except ControlError as error:
            seen = desk.look(name)  # it may have ended meanwhile
            if seen.is_running:
                living = {"notes": [str(error)]}
    record, files = seen.record, seen.files
    told = _describe(vm, seen)
    if living.get("pid"):
        told |= {"state": living["state"], "pid": living["pid"]}
    spec = record.spec if record is not None else {}
    changes = record.forwards if record is not None and seen.is_running else {}
    return {
        **told,
        "directory": str(files.directory),
        "pid_file": str(files.pid),
        "serial_file": str(files.serial_log),
        "qmp_file": str(files.qmp_socket),
        "monitor_file": str(files.monitor_socket),
        "runstate": living.get("runstate"),
        "accelerator": (record.accelerator if record is not None else "") or "",
        "started_at": record.started_at if record is not None else "",
        "ended_at": record.ended if record is not None and not seen.is_running else "",
        "has_agent": living.get("has_agent", record is not None and record.agent),
        "agent_ready": living.get("agent_ready", False),
        "phases": living.get("phases", {}),
        "restarts": living.get("restarts", 0),
        "trouble": living.get("trouble", ""),
        "notes": living.get("notes", []),
        "supervisor_pid": living.get("supervisor_pid"),
        "limits": _find_limits(spec, record.group if record is not None else {}),
        "forwards": [str(forward) for forward in list_forwards(spec, changes)],
        "holder": _find_holder(seen) if desk.is_held(name) and seen.is_running else None,
        "network": [":".join(filter(None, network.values())) for network in spec.get("networks", ())],
    }


def _find_holder(seen: Seen) -> dict[str, Any] | None:
    state = read_state(seen.files)
    return None if state is None else {key: state[key] for key in ("pid", "port", "connected", "why") if key in state}


def _find_limits(spec: dict[str, Any], group: dict[str, Any]) -> dict[str, Any] | None:
    limits = Limits(**spec.get("limits", {}))
    return {**asdict(limits), "kept_by": group["kind"] if group else "setrlimit"} if limits else None


def _list_held(holder: dict[str, Any] | None) -> list[tuple[str, str]]:
    if holder is None:
        return []
    if "pid" in holder:
        return [("program", f"pid {holder['pid']}")]
    return [("line", f"{holder['port']}, connected" if holder["connected"] else holder["why"])]


def _to_text(found: dict[str, Any]) -> str:
    state = found["state"] + (f" ({found['runstate']})" if found["runstate"] else "")
    rows = [("state", state)]
    if found["pid"]:
        rows.append(("pid", str(found["pid"])))
        rows += _list_held(found["holder"])
    if found["pid"] and found["kind"] == "vm":
        rows.append(("agent", "ready" if found["agent_ready"] else "no answer yet" if found["has_agent"] else "none"))
    if found["restarts"]:
        rows.append(("started", f"again, {found['restarts']} times" if found["restarts"] > 1 else "again, once"))
    if found["ssh"] and found["ssh"]["port"]:
        rows.append(("ssh", f"port {found['ssh']['port']}"))
    if found["limits"]:
        limits = dict(found["limits"])
        kept_by = limits.pop("kept_by")
        rows.append(("limits", f"{Limits(**limits)}, kept by {kept_by}"))
    rows += [("forward", forward) for forward in found["forwards"]]
    rows += [(key, found[key]) for key in ("note", "trouble") if found[key]]
    rows.append(("console", found["serial_file"]))
    return "\n".join([found["name"], *(f"  {key:8} {printable(value)}" for key, value in rows)])
