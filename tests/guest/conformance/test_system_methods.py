"""The methods about the machine, its users and its services: the same on the built-in guest and on Debian."""

from __future__ import annotations

import base64
import secrets
import shlex
import time

import pytest

from tests.guest.conformance.conftest import Guest

pytestmark = [pytest.mark.boot, pytest.mark.timeout(300)]


def build_key(comment: str = "someone@somewhere") -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + secrets.token_bytes(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


@pytest.mark.parametrize(
    "method",
    [
        "get_system_info", "get_network_info", "get_disk_usage", "get_time", "cpu_list", "memory_list", "process_list",
        "service_list", "user_list", "get_identity", "get_metrics", "filesystem_status",
    ],
)  # fmt: skip
def test_what_only_reads(guest: Guest, method: str) -> None:
    guest.result(method)


def test_time(guest: Guest) -> None:
    wanted = 1_900_000_000 * 10**9
    now = guest.result("set_time", time_ns=wanted)
    assert now["rtc"] and 0 <= now["time_ns"] - wanted < 10**10
    assert int(guest.run("date +%s")) - 1_900_000_000 < 30
    guest.run("date -s @1700000000")
    # Without a time it takes that of the machine's own clock, which was set with it.
    assert 0 <= guest.result("set_time")["time_ns"] - wanted < 60 * 10**9
    assert guest.error("set_time", time_ns=-1)["code"] == -32602
    guest.result("set_time", time_ns=time.time_ns())


def test_hostname(guest: Guest) -> None:
    before = guest.result("get_system_info")["hostname"]
    assert guest.result("set_hostname", hostname="named-anew")["hostname"] == "named-anew"
    assert guest.run("hostname; cat /etc/hostname") == "named-anew\nnamed-anew\n"
    guest.result("set_hostname", hostname="for-now", persistent=False)
    assert guest.run("hostname; cat /etc/hostname") == "for-now\nnamed-anew\n"
    for wrong in ("", "-a", "a..b", "a b", "x" * 65, "a\n"):
        assert guest.error("set_hostname", hostname=wrong)["code"] == -32602
    guest.result("set_hostname", hostname=before)


def test_a_clone_becomes_a_machine_of_its_own(guest: Guest) -> None:
    before, seed = guest.result("get_identity"), base64.b64encode(secrets.token_bytes(32)).decode()
    machine_id = secrets.token_hex(16)
    wanted = {"hostname": "a-clone", "machine_id": machine_id, "seed": seed, "time_ns": time.time_ns()}
    told = guest.result("renew_identity", **wanted)
    assert told == {"hostname": "a-clone", "machine_id": machine_id, "interfaces": told["interfaces"]}
    assert guest.result("get_identity") == {"hostname": "a-clone", "machine_id": machine_id}
    assert guest.run("hostname; cat /etc/hostname /etc/machine-id") == f"a-clone\na-clone\n{machine_id}\n"
    if guest.has_systemd:  # its journal goes on under the new id, with what it held before
        guest.run(
            "until journalctl --quiet --boot --grep 'Linux version' --lines 1 | grep -q Linux; do sleep 0.2; done"
        )
    for key, wrong in (
        ("hostname", "-a"), ("machine_id", "x" * 32), ("machine_id", "0" * 31), ("seed", "AAAA"), ("seed", "?" * 44),
        ("time_ns", -1), ("macs", {"52:54:00:00:00:01": "here"}), ("macs", {"x": "52:54:00:00:00:01"}),
        ("reachable", 1),
    ):  # fmt: skip
        assert guest.error("renew_identity", **{**wanted, key: wrong})["code"] == -32602, (key, wrong)
    guest.run("printf 'none yet' > /etc/machine-id")
    wanted["reachable"] = True
    assert guest.result("renew_identity", **wanted, macs={"52:54:00:99:99:99": "52:54:00:00:00:01"})["interfaces"] == []
    assert guest.run("cat /etc/machine-id") == f"{machine_id}\n"
    guest.result("set_hostname", hostname=before["hostname"])


def test_processors(guest: Guest) -> None:
    assert [cpu["id"] for cpu in guest.result("cpu_list")["cpus"]] == [0, 1]
    assert guest.result("cpu_set_online", ids=[1], online=False)["cpus"][0]["online"] is False
    assert guest.run("cat /sys/devices/system/cpu/online") == "0\n"
    assert guest.result("get_system_info")["cpus"] == 1
    guest.result("cpu_set_online", ids=[0, 1], online=True)
    assert guest.run("cat /sys/devices/system/cpu/online") == "0-1\n"
    assert guest.error("cpu_set_online", ids=[99], online=False)["code"] == -32002


def test_memory(guest: Guest) -> None:
    listed = guest.result("memory_list")
    assert listed["block_bytes"] * listed["total"] >= 384 << 20
    first = guest.result("memory_list", limit=1)
    assert [block["id"] for block in first["blocks"]] == [listed["blocks"][0]["id"]] and first["next"] is not None
    last = listed["blocks"][-1]["id"]
    assert guest.result("memory_set_online", ids=[last], online=True)["blocks"][0]["online"]
    assert guest.error("memory_set_online", ids=[60000], online=False)["code"] == -32002


def test_a_process_gets_a_signal_only_if_it_is_the_one_that_was_meant(guest: Guest) -> None:
    pid = int(guest.run("sleep 1000 > /dev/null 2>&1 & echo $!"))
    [seen] = guest.result("process_list", after=pid - 1, limit=1)["processes"]
    assert seen["command"] == "sleep 1000" and seen["user"] == "root" and seen["state"] in "RS"
    wrong = guest.error("process_signal", pid=pid, signal="KILL", start_ticks=seen["start_ticks"] + 1)
    assert wrong["code"] == -32002
    guest.run(f"kill -0 {pid}")
    guest.result("process_signal", pid=pid, signal="KILL", start_ticks=seen["start_ticks"])
    guest.run(f"while kill -0 {pid} 2> /dev/null && ! grep -q ' Z ' /proc/{pid}/stat; do :; done")
    agent = guest.result("get_agent_info")["pid"]
    for protected in (1, agent):
        assert guest.error("process_signal", pid=protected, signal="KILL")["code"] == -32003


def test_users(guest: Guest) -> None:
    password = secrets.token_hex(12)
    made = guest.result("user_create", name="worker", uid=4321, comment="A worker", groups=["disk"], password=password)
    assert (made["uid"], made["groups"]) == (4321, ["disk"])
    assert guest.run("stat -c %U /home/worker") == "worker\n"
    assert guest.run("id -u worker") == "4321\n"
    stored = guest.run("grep ^worker: /etc/shadow").split(":")[1]
    assert stored.startswith("$") and password not in guest.run("cat /etc/shadow /etc/passwd")
    assert guest.error("user_create", name="worker")["code"] == -32008
    assert guest.error("user_create", name="other", uid=4321)["code"] == -32008
    assert guest.error("user_create", name="other", groups=["nobodys"])["code"] == -32002
    for wrong in ("-x", "a b", "a:b", "", "Ab", "a\n", "../x"):
        assert guest.error("user_create", name=wrong)["code"] == -32602
    assert guest.error("user_create", name="other", comment="a:0:0:b")["code"] == -32602
    guest.result("user_set_password", name="worker", password=secrets.token_hex(8))
    assert guest.run("grep ^worker: /etc/shadow").split(":")[1] != stored
    guest.result("user_set_password", name="worker", password=stored, hashed=True)
    assert guest.run("grep ^worker: /etc/shadow").split(":")[1] == stored
    assert guest.error("user_set_password", name="worker", password="a:b", hashed=True)["code"] == -32602
    assert guest.error("user_set_password", name="nobodyhere", password="x")["code"] == -32002
    assert guest.error("user_delete", name="root")["code"] == -32003
    guest.result("user_delete", name="worker", remove_home=True)
    assert "worker" not in guest.run("cat /etc/passwd /etc/group /etc/shadow; ls /home")
    assert guest.error("user_delete", name="worker")["code"] == -32002


def test_ssh_keys(guest: Guest) -> None:
    guest.result("user_create", name="keyholder")
    one, two = build_key("one"), build_key("two")
    assert guest.result("ssh_key_add", user="keyholder", keys=[one, two, one])["added"] == 2
    assert guest.result("ssh_key_add", user="keyholder", keys=[one])["added"] == 0
    home = "/home/keyholder"
    modes = guest.run(f"stat -c '%a %U' {home}/.ssh {home}/.ssh/authorized_keys").split("\n")
    assert modes[:2] == ["700 keyholder", "600 keyholder"]
    listed = guest.result("ssh_key_list", user="keyholder")
    assert [key["comment"] for key in listed["keys"]] == ["one", "two"]
    for wrong in (
        f'command="id" {one}',
        "ssh-ed25519 AAAA",
        one + "\nssh-rsa",
        f"#{one}",
        one.replace(" ", "\t", 1) + "\0",
    ):
        assert guest.error("ssh_key_add", user="keyholder", keys=[wrong])["code"] == -32602
    # A key that came there with options is not shown as one of ours, and goes all the same.
    with_options = shlex.quote('from="10.0.0.0/8" ' + build_key("options"))
    guest.run(f"echo {with_options} >> {home}/.ssh/authorized_keys")
    assert guest.result("ssh_key_list", user="keyholder")["others"] == 1
    assert (
        guest.result("ssh_key_remove", user="keyholder", fingerprints=[listed["keys"][0]["fingerprint"]])["removed"]
        == 1
    )
    assert guest.result("ssh_key_remove", user="keyholder", keys=[two])["removed"] == 1
    assert guest.result("ssh_key_list", user="keyholder")["total"] == 0
    # What the user makes of the place cannot lead the agent elsewhere.
    guest.run("mkdir -p /tmp/victim; echo untouched > /tmp/victim/authorized_keys")
    for trap in (
        f"rm -rf {home}/.ssh; ln -s /tmp/victim {home}/.ssh",
        f"rm -rf {home}/.ssh; mkdir {home}/.ssh; ln -s /tmp/victim/authorized_keys {home}/.ssh/authorized_keys",
        f"rm -rf {home}/.ssh; mkdir {home}/.ssh; mkfifo {home}/.ssh/authorized_keys",
    ):
        guest.run(trap)
        assert guest.error("ssh_key_add", user="keyholder", keys=[one])["code"] == -32003, trap
    assert guest.run("cat /tmp/victim/authorized_keys; ls /tmp/victim") == "untouched\nauthorized_keys\n"
    guest.result("user_delete", name="keyholder", remove_home=True)


def test_services(guest: Guest) -> None:
    name = "conformance.service" if guest.has_systemd else "conformance"
    if guest.has_systemd:
        guest.run(
            "printf '[Service]\\nExecStart=/bin/sleep 1000\\n' > /run/systemd/system/conformance.service;"
            "printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' > /run/systemd/system/broken.service;"
            "systemctl daemon-reload"
        )
    else:
        guest.run(
            "cat > /etc/init.d/conformance <<'END'\n#!/bin/sh\nNAME=conformance\n. /usr/lib/unhinged/service\n"
            "start_service() { touch /run/c; }\nstop_service() { rm /run/c; }\nis_running() { [ -e /run/c ]; }\n"
            'run_service "$@"\nEND\n'
            "sed 's/conformance/broken/; s/touch .run.c/return 1/' /etc/init.d/conformance > /etc/init.d/broken;"
            "chmod +x /etc/init.d/conformance /etc/init.d/broken"
        )
    assert guest.result("service_status", name=name)["state"] == "stopped"
    started = guest.result("service_start", name=name)
    assert started["state"] == "started" and started["name"] == name
    assert name in [service["name"] for service in guest.result("service_list", limit=1000)["services"]]
    again = guest.result("service_restart", name=name)
    assert again["state"] == "started" and (not guest.has_systemd or again["pid"] != started["pid"])
    assert guest.result("service_stop", name=name)["state"] == "stopped"
    assert guest.error("service_start", name="broken")["code"] == -32005
    event = guest.wait_for_event("service broken.service failed" if guest.has_systemd else "service broken failed")
    assert event["state"] == "failed"
    for method in ("service_status", "service_start", "service_stop", "service_restart"):
        assert guest.error(method, name="nothing-of-the-sort")["code"] == -32002
        assert guest.error(method, name="../../bin/sh")["code"] == -32602


def find_disk(guest: Guest) -> str:
    """The disk of the fixture; its driver may come only now."""
    look = '[ "$(cat $disk/serial 2> /dev/null)" = conformance ] && echo /dev/${disk##*/} && exit'
    return guest.run(f"while :; do for disk in /sys/block/vd*; do {look}; done; done").strip()


def test_file_systems(guest: Guest) -> None:
    disk = find_disk(guest)
    guest.run(f"/sbin/mke2fs -q -t ext4 {disk} && mkdir -p /mnt/frozen && mount -t ext4 {disk} /mnt/frozen")
    paths = ["/mnt/frozen"]
    assert guest.error("filesystem_freeze", paths=["/nowhere"])["code"] == -32002
    assert guest.error("filesystem_freeze", paths=["/proc"])["code"] == -32009
    frozen = guest.result("filesystem_freeze", paths=paths, timeout_s=60)
    assert frozen["frozen"] == paths
    # Nothing can write there, the agent refuses what might, and all the rest is answered.
    status = guest.result("filesystem_status")
    assert status["state"] == "frozen" and 0 < status["remaining_s"] <= 60
    assert guest.error("exec_command", argv=["true"])["code"] == -32004
    assert guest.error("filesystem_freeze")["code"] == -32004
    guest.result("get_metrics")
    assert guest.result("filesystem_thaw")["thawed"] == paths
    assert guest.result("filesystem_status")["state"] == "thawed"
    assert guest.error("filesystem_thaw")["code"] == -32005
    guest.run("echo written > /mnt/frozen/file")
    [trimmed] = guest.result("filesystem_trim", paths=paths)["trimmed"]
    assert trimmed["path"] == "/mnt/frozen" and (trimmed["trimmed_bytes"] or trimmed["error"] == "not supported")


def test_a_frozen_file_system_really_is(guest: Guest) -> None:
    script = (
        "while ! touch /mnt/frozen/go; do :; done; i=0; while :; do i=$((i + 1)); echo $i > /mnt/frozen/count; done"
    )
    job = guest.result("exec_start", argv=["sh", "-c", script])["job"]
    guest.run("while [ ! -s /mnt/frozen/count ]; do :; done")
    guest.result("filesystem_freeze", paths=["/mnt/frozen"])
    pid = next(
        p["pid"] for p in guest.result("process_list", limit=1000)["processes"] if "/mnt/frozen/count" in p["command"]
    )
    end = time.monotonic() + 30
    while guest.result("process_list", after=pid - 1, limit=1)["processes"][0]["state"] != "D":
        assert time.monotonic() < end, "the writer goes on although the file system is frozen"
    guest.result("filesystem_thaw")
    guest.result("job_cancel", job=job)
    guest.wait_for_job(job)


def test_thaws_by_itself(guest: Guest) -> None:
    guest.result("filesystem_freeze", paths=["/mnt/frozen"], timeout_s=1)
    guest.wait_for_event("the file systems were thawed because their time was up")
    assert guest.result("filesystem_status")["state"] == "thawed"
    guest.run("echo again > /mnt/frozen/file")


def test_log_of_a_file(guest: Guest) -> None:
    guest.run("seq 1 100 > /tmp/log")
    stream = guest.vm.open_stream()
    job = guest.result("log_follow", path="/tmp/log", lines=2, output=stream.number)["job"]
    guest.vm.receive_until(lambda: stream.data == b"99\n100\n", "the last lines")
    guest.run("echo more >> /tmp/log; mv /tmp/log /tmp/log.1; echo new > /tmp/log")
    guest.vm.receive_until(lambda: stream.data == b"99\n100\nmore\nnew\n", "what came later")
    guest.result("job_cancel", job=job)
    assert guest.wait_for_job(job)["error"]["code"] == -32006


def test_log_of_the_journal(guest: Guest) -> None:
    stream = guest.vm.open_stream()
    if not guest.has_systemd:
        assert guest.error("log_follow", journal=True, output=stream.number)["code"] == -32009
        return
    job = guest.result("log_follow", journal=True, lines=0, output=stream.number)["job"]
    nonce = secrets.token_hex(8)
    guest.run(f"logger {nonce}")  # at once, before journalctl has begun to read
    guest.vm.receive_until(lambda: nonce.encode() in stream.data, "the line in the journal")
    guest.result("job_cancel", job=job)
    assert guest.wait_for_job(job)["error"]["code"] == -32006


def test_first_boot_directives(guest: Guest) -> None:
    directives = {
        "users": [{"name": "cloudy", "ssh_authorized_keys": [build_key()], "plain_text_passwd": "secret"}],
        "write_files": [{"path": "/srv/a/b", "content": "hello\n", "owner": "cloudy:cloudy", "permissions": "0640"}],
        "runcmd": [["echo", "$HOME"], "cat /srv/a/b; exit 3", "echo last"],
    }
    stream = guest.vm.open_stream()
    wrong = guest.error("cloud_init_apply", directives={**directives, "bogus": 1}, output=stream.number)
    assert wrong["code"] == -32602 and wrong["data"]["key"] == "bogus"
    assert "cloudy" not in guest.run("cat /etc/passwd")
    job = guest.result("cloud_init_apply", directives=directives, output=stream.number)["job"]
    done = guest.wait_for_job(job)["result"]
    assert guest.vm.read_stream(stream) == b"$HOME\nhello\nlast\n"
    assert [(entry["directive"], entry["ok"]) for entry in done["directives"]] == [
        ("users", True), ("write_files", True), ("runcmd", False),
    ]  # fmt: skip
    assert "1: exit code 3" in done["directives"][2]["detail"]
    assert guest.run("stat -c '%a %U %G' /srv/a/b") == "640 cloudy cloudy\n"
    assert guest.result("ssh_key_list", user="cloudy")["total"] == 1
    guest.result("user_delete", name="cloudy", remove_home=True)


def test_packages(guest: Guest) -> None:
    if not guest.has_systemd:
        for method, params in (("package_list", {}), ("package_install", {"names": ["aa"]}), ("package_update", {})):
            assert guest.error(method, **params)["code"] == -32009
        return
    # An archive in the guest itself: nothing here may depend on a network.
    guest.run(
        "rm -rf /srv/deb /etc/apt/sources.list.d/*; : > /etc/apt/sources.list;"
        "for v in 1 2; do mkdir -p /srv/deb/p/DEBIAN; printf 'Package: conformance\\nVersion: %s\\nArchitecture: all\\n"
        "Maintainer: nobody <nobody@example.org>\\nDescription: nothing\\n' $v > /srv/deb/p/DEBIAN/control;"
        "dpkg-deb -b /srv/deb/p /srv/deb/c_$v.deb > /dev/null;"
        "{ cat /srv/deb/p/DEBIAN/control; echo Filename: ./c_$v.deb; echo Size: $(stat -c %s /srv/deb/c_$v.deb);"
        "echo SHA256: $(sha256sum < /srv/deb/c_$v.deb | cut -d' ' -f1); echo; } >> /srv/deb/Packages; done;"
        "echo 'deb [trusted=yes] file:/srv/deb ./' > /etc/apt/sources.list.d/conformance.list"
    )
    stream = guest.vm.open_stream()
    job = guest.result("package_install", names=["conformance=1"], refresh=True, output=stream.number)["job"]
    done = guest.wait_for_job(job)
    assert done.get("result") == {
        "changed": [{"name": "conformance", "before": None, "after": "1"}],
        "changed_total": 1,
    }, guest.vm.read_stream(stream)
    assert b"Setting up conformance" in guest.vm.read_stream(stream)
    job = guest.result("package_update", names=["conformance"])["job"]
    assert guest.wait_for_job(job)["result"]["changed"] == [{"name": "conformance", "before": "1", "after": "2"}]
    assert guest.result("package_list", prefix="conformance")["packages"][0]["version"] == "2"
    job = guest.result("package_install", names=["no-such-package"])["job"]
    assert guest.wait_for_job(job)["error"]["code"] == -32002
    # Somebody else holds the lock for longer than we are to wait.
    lock = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX);"
        "print(1, flush=True); time.sleep(100)"
    )
    said = guest.vm.open_stream()
    holder = guest.result("exec_start", argv=["python3", "-c", lock], stdout=said.number)["job"]
    guest.vm.receive_until(lambda: bytes(said.data) == b"1\n", "the lock")
    job = guest.result("package_remove", names=["conformance"], lock_timeout_s=1)["job"]
    assert guest.wait_for_job(job)["error"]["code"] == -32004
    guest.result("job_cancel", job=holder)
    guest.wait_for_job(holder)
    job = guest.result("package_remove", names=["conformance"], purge=True)["job"]
    assert guest.wait_for_job(job)["result"]["changed"] == [{"name": "conformance", "before": "2", "after": None}]
    for wrong in ("x-", "-y", "a b", "x;y", "lib*"):
        assert guest.error("package_install", names=[wrong])["code"] == -32602


def test_metrics_are_pushed(guest: Guest) -> None:
    job = guest.result("metrics_watch", interval_s=0.2, count=3)["job"]
    seen = [guest.vm.wait_for_notification("metrics") for _ in range(3)]
    assert [note["sequence"] for note in seen] == [1, 2, 3] and {note["job"] for note in seen} == {job}
    assert seen[2]["metrics"]["uptime_s"] > seen[0]["metrics"]["uptime_s"]
    assert guest.wait_for_job(job)["result"] == {"sent": 3}


def test_a_disk_nearly_full_is_told_once_and_its_end_too(guest: Guest) -> None:
    guest.run(
        "mkdir -p /mnt/small; mount -t tmpfs -o size=4m small /mnt/small; head -c 4000000 /dev/zero > /mnt/small/f"
    )
    told = guest.wait_for_event("disk nearly full", path="/mnt/small")
    assert told["used_percent"] >= 90
    guest.run("rm /mnt/small/f")
    assert guest.wait_for_event("disk has room again", path="/mnt/small")["used_percent"] < 10
    guest.run("umount /mnt/small")


def test_memory_that_ran_out_is_told(guest: Guest) -> None:
    # A control group of its own, so that the guest itself stays well.
    guest.run("grep -q cgroup2 /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup")
    guest.run(
        "echo +memory > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p /sys/fs/cgroup/small;"
        "echo 8M > /sys/fs/cgroup/small/memory.max; echo 0 > /sys/fs/cgroup/small/memory.swap.max 2> /dev/null;"
        "sh -c 'echo $$ > /sys/fs/cgroup/small/cgroup.procs; exec tail /dev/zero' || true"
    )
    told = guest.wait_for_event("out of memory")
    assert told["process"] == "tail" and told["control_group"]


def test_a_login_is_told(guest: Guest) -> None:
    stream = guest.vm.open_stream()
    argv = ["login", "-f", "root"] if guest.has_systemd else ["sh", "-l", "-c", "exit"]
    pty = {"rows": 24, "columns": 80}
    job = guest.result("exec_start", argv=argv, pty=pty, stdout=stream.number, env={"HOME": "/root"})["job"]
    told = guest.wait_for_event("login")
    assert told["user"] == "root" and told["terminal"].startswith("pts/")
    if guest.has_systemd:
        guest.result("job_cancel", job=job)
    guest.wait_for_job(job)


def test_shutdown_is_told_first(guest: Guest) -> None:
    """The last one: the guest is gone after it."""
    guest.run("(sleep 0.3; poweroff) > /dev/null 2>&1 &")
    guest.wait_for_event("shutdown begins")
