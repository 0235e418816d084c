"""The ssh configuration of a VM: held against ssh itself, which reads it and says what it understood (`ssh -G`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.errors import ConfigError
from control.paths import UNIX_PATH_MAX_BYTES
from control.spec import ssh_options
from control.spec.declaration import SshValue
from control.ssh import SshTarget, build_ssh_config, find_control_path
from control.ssh.config import find_unknown_options

TARGET = SshTarget("web", 2222, Path("/srv/my project"), Path("/run/vm.web/ssh.socket"))


def ask_ssh(text: str, directory: Path, host: str = "web") -> dict[str, list[str]]:
    """What ssh makes of the configuration: option in small letters, and its values."""
    file = directory / "ssh.conf"
    file.write_text(text)
    done = subprocess.run(["ssh", "-G", "-F", file, host], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


def test_ssh_understands_what_was_meant(tmp_path: Path) -> None:
    text = build_ssh_config(
        TARGET,
        {
            "ServerAliveInterval": 300,
            "StrictHostKeyChecking": "no",
            "IdentityFile": ("keys/my key", "~/.ssh/id", '/x/"q" #1'),
            "SendEnv": "LANG LC_*",
        },
        {
            "serveraliveinterval": 60,
            "User": "root",
            "ProxyCommand": 'nc "%h" %p',
            "BatchMode": True,
            "Compression": False,
        },
    )
    found = ask_ssh(text, tmp_path)
    expected = {
        "hostname": ["127.0.0.1"], "port": ["2222"], "user": ["root"], "serveraliveinterval": ["60"],
        "stricthostkeychecking": ["false"], "userknownhostsfile": ["/dev/null"],
        "identityfile": ["/srv/my project/keys/my key", "~/.ssh/id", '/x/"q" #1'],
        "sendenv": ["LANG", "LC_*"], "proxycommand": ['nc "%h" %p'], "batchmode": ["yes"], "compression": ["no"],
        "controlmaster": ["auto"], "controlpath": ["/run/vm.web/ssh.socket"], "controlpersist": ["60"],
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected


def test_it_is_about_this_vm_alone(tmp_path: Path) -> None:
    text = build_ssh_config(TARGET, {"User": "root"})
    assert ask_ssh(text, tmp_path, "elsewhere")["hostname"] == ["elsewhere"]
    assert text.startswith("Host web\n")


def test_a_vm_with_an_address_of_its_own(tmp_path: Path) -> None:
    target = SshTarget("web", None, Path("/srv"))
    found = ask_ssh(build_ssh_config(target, {"HostName": "192.0.2.7"}), tmp_path)
    assert (found["hostname"], found["port"], found["controlmaster"]) == (["192.0.2.7"], ["22"], ["false"])


def test_the_port_is_the_vms_whatever_an_option_says(tmp_path: Path) -> None:
    assert ask_ssh(build_ssh_config(TARGET, {"Port": 1}), tmp_path)["port"] == ["2222"]


@pytest.mark.parametrize("directory", ["/run/a b/100%c", '/run/q"uote', "/run/back\\slash", "/run/#5", "/run/it's"])
def test_a_control_path_with_odd_characters(directory: str, tmp_path: Path) -> None:
    path = find_control_path(Path(directory))
    target = SshTarget("web", 1, Path("/srv"), path)
    assert ask_ssh(build_ssh_config(target), tmp_path)["controlpath"] == [str(path)]


def test_a_relative_control_path_lies_with_the_vm(tmp_path: Path) -> None:
    found = ask_ssh(build_ssh_config(TARGET, {"ControlPath": "cm/%r@%h"}), tmp_path)
    assert found["controlpath"] == [f"/run/vm.web/{found['user'][0]}@127.0.0.1"]


def test_a_control_path_leaves_room_for_what_ssh_puts_behind_it() -> None:
    longest = next(n for n in range(200, 0, -1) if find_control_path(Path("/" + "d" * n)) is not None)
    assert len(f"/{'d' * longest}/ssh.socket") == UNIX_PATH_MAX_BYTES - 17
    assert find_control_path(Path("/run/${HOME}")) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "root\nProxyCommand evil"),
        ("User", "root\rProxyCommand evil"),
        ("User", "a\0b"),
        ("User", "a\u2028b"),
        ("User", " "),
        ("SetEnv", 'A="x'),
        ("IdentityFile", '"x'),
        ("Host", "*"),
        ("match", "all"),
        ("Proxy Command", "x"),
        ("User=root", "x"),
        ("", "x"),
        ("User\n", "x"),
    ],
)
def test_what_cannot_stand_in_a_configuration_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_ssh_config(TARGET, {name: value})
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_names_are_those_of_ssh(tmp_path: Path) -> None:
    """Each name we know is one ssh knows: of a wrong one it says so before it looks at the value."""
    wrong = []
    for name in ssh_options.KNOWN:
        done = subprocess.run(
            ["ssh", "-G", "-F", "/dev/null", "-o", f"{name}=", "web"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if "bad configuration option" in done.stderr.lower():
            wrong.append(name)
    assert wrong == []
    assert find_unknown_options({"ServerAliveIntervall": 1, "user": "x"}) == (
        ("ServerAliveIntervall", "ServerAliveInterval"),
    )


NAMES = st.one_of(st.sampled_from(ssh_options.KNOWN), st.text("abHost \n=#", max_size=6))
VALUES = st.one_of(
    st.text(max_size=12), st.integers(), st.booleans(), st.lists(st.text(max_size=6), max_size=2).map(tuple)
)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_no_option_adds_a_line_that_is_not_its_own(options: dict[str, SshValue]) -> None:
    try:
        text = build_ssh_config(TARGET, options)
    except ConfigError:
        return
    allowed = {name.lower() for name in options} | {
        line.split()[0].lower() for line in build_ssh_config(TARGET).splitlines()
    }
    lines = text.split("\n")
    assert {line.split()[0].lower() for line in lines if line} <= allowed
    assert all(line.startswith("    ") for line in lines[1:-1])
    assert sum(line.lower().lstrip().startswith(("host ", "match ")) for line in lines) == 1
