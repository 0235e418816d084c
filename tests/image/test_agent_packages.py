"""The agent's packages: alike wherever they are made, complete, and runnable by the oldest Python we promise.

The real dpkg-deb and rpmbuild make them; the real dpkg-deb, rpm and lintian read them. What they do to a running system
is tested in `tests/debian`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from guest.agent import VERSION, config
from tests.guest.agentprocess import AgentProcess

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = "iso/agent/build.py"

needs_deb = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="a .deb is made with dpkg-deb")
needs_rpm = pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpm is missing: make deps-install-guests")
KINDS = [pytest.param("pyz"), pytest.param("deb", marks=needs_deb), pytest.param("rpm", marks=needs_rpm)]

LINTIAN_KNOWN = {
    "bogus-mail-host": "the project has no address of its own",
    "bogus-mail-host-in-debian-changelog": "the same",
    "maintainer-script-calls-systemctl": "deb-systemd-invoke cannot wait for the agent's own command to end",
}


def make(kind: str, output: Path, *options: str, repository: Path = REPOSITORY, umask: int = 0o022) -> Path:
    done = subprocess.run(
        [sys.executable, str(repository / BUILD), kind, "--output", str(output), *options],
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_deb(path: Path, part: str) -> dict[str, tarfile.TarInfo | bytes]:
    """The members of a package: its files as bytes under their path, and under `PATH:` what tar says of them."""
    data = subprocess.run(["dpkg-deb", part, str(path)], capture_output=True, check=True).stdout
    found: dict[str, tarfile.TarInfo | bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            found[f"{member.name}:"] = member
            content = archive.extractfile(member)
            if content is not None:
                found[member.name.removeprefix("./")] = content.read()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_two_builds_in_different_places_are_alike(kind: str, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for part in ("iso", "guest"):
        shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "LICENSE", copy)
    first = make(kind, tmp_path / "first")
    second = make(kind, tmp_path / "second", repository=copy, umask=0o077)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_what_has_not_changed_is_left_alone(tmp_path: Path) -> None:
    path = make("pyz", tmp_path / "out")
    before = path.stat().st_ino
    assert make("pyz", tmp_path / "out").stat().st_ino == before
    assert make("pyz", tmp_path / "out", "--version", "9").stat().st_ino != before


def test_the_zipapp_runs_by_itself(tmp_path: Path) -> None:
    path = make("pyz", tmp_path / "out", umask=0o077)
    assert run(str(path), "--version") == f"unhinged-agent {VERSION}\n"
    assert run(sys.executable, str(path), "--version") == f"unhinged-agent {VERSION}\n"


def test_the_zipapp_holds_sources_only_and_all_of_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(make("pyz", tmp_path / "out")) as archive:
        names = set(archive.namelist())
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    agent = REPOSITORY / "guest" / "agent"
    assert names == {"__main__.py", *(f"agent/{path.relative_to(agent)}" for path in agent.rglob("*.py"))}


def test_the_zipapp_is_an_agent(tmp_path: Path) -> None:
    answer_as_agent(make("pyz", tmp_path / "out", "--version", "7.7"), tmp_path, "7.7")


def answer_as_agent(pyz: Path, directory: Path, version: str) -> None:
    agent = AgentProcess(directory, start=str(pyz))
    assert agent.result("get_agent_info")["version"] == version
    assert agent.result("exec_command", argv=["echo", "hello"])["stdout"] == "hello\n"
    assert agent.close() == 0


def test_a_version_that_is_none_is_refused(tmp_path: Path) -> None:
    argv = [sys.executable, str(REPOSITORY / BUILD), "pyz", "--output", str(tmp_path), "--version", "v 1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "'v 1' cannot be the version" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    argv = [sys.executable, str(REPOSITORY / BUILD), "rpm", "--output", str(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert "rpmbuild is not installed" in done.stderr
    assert "apt-get install rpm" in done.stderr


INSTALLED = {
    "etc/unhinged-agent/config.json",
    "usr/lib/systemd/system/unhinged-agent.service",
    "usr/lib/udev/rules.d/60-unhinged-agent.rules",
    "usr/lib/unhinged-agent/agent/main.py",
    "usr/lib/unhinged-agent/start.py",
    "usr/sbin/unhinged-agent",
    "usr/share/man/man8/unhinged-agent.8.gz",
    "usr/share/unhinged-agent/strict.conf",
    "usr/share/unhinged-agent/strict.json",
}


@needs_deb
def test_the_deb_holds_everything_as_roots(tmp_path: Path) -> None:
    files = read_deb(make("deb", tmp_path / "out", umask=0o077), "--fsys-tarfile")
    assert files.keys() >= INSTALLED
    about = [member for member in files.values() if isinstance(member, tarfile.TarInfo)]
    assert {(member.uid, member.gid) for member in about} == {(0, 0)}
    assert {oct(member.mode) for member in about if member.isdir()} == {"0o755"}
    executable = [member.name for member in about if member.isfile() and member.mode != 0o644]
    assert executable == ["./usr/sbin/unhinged-agent"]


@needs_deb
def test_the_deb_says_what_it_needs_and_which_file_is_the_users(tmp_path: Path) -> None:
    control = read_deb(make("deb", tmp_path / "out", "--version", "1.2.3"), "--ctrl-tarfile")
    assert control["conffiles"] == b"/etc/unhinged-agent/config.json\n"
    text = control["control"]
    assert isinstance(text, bytes)
    assert b"Version: 1.2.3\n" in text
    assert b"Depends: python3:any (>= 3.9)\n" in text
    assert b"@" not in text.replace(b"@localhost", b"")
    for name in ("postinst", "prerm", "postrm"):
        script = control[name]
        assert isinstance(script, bytes)
        assert subprocess.run(["dash", "-n"], input=script, timeout=60, check=False).returncode == 0


@needs_deb
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed: apt-get install lintian")
def test_lintian_finds_only_what_we_know(tmp_path: Path) -> None:
    path = make("deb", tmp_path / "out")
    argv = ["lintian", "--allow-root", "--fail-on", "none", str(path)]
    found = set(re.findall(r"^[EW]: unhinged-agent: (\S+)", run(*argv), flags=re.MULTILINE))
    assert found <= LINTIAN_KNOWN.keys()


@needs_rpm
def test_the_rpm_holds_the_files_of_the_deb(tmp_path: Path) -> None:
    rpm = make("rpm", tmp_path / "out")
    listed = {line.removeprefix("/") for line in run("rpm", "-qp", "--list", str(rpm)).splitlines()}
    assert listed >= INSTALLED
    deb = read_deb(make("deb", tmp_path / "out"), "--fsys-tarfile")
    in_deb = {name for name, data in deb.items() if isinstance(data, bytes) and not name.startswith("usr/share/doc")}
    assert in_deb <= listed
    assert run("rpm", "-qp", "--configfiles", str(rpm)) == "/etc/unhinged-agent/config.json\n"
    modes = {fields[0]: fields[4] for fields in map(str.split, run("rpm", "-qp", "--dump", str(rpm)).splitlines())}
    assert modes["/usr/sbin/unhinged-agent"] == "0100755"
    assert {owner for line in run("rpm", "-qp", "--dump", str(rpm)).splitlines() for owner in line.split()[5:7]} == {
        "root"
    }


@needs_rpm
def test_the_rpm_has_the_scripts_of_the_deb_and_needs_only_python(tmp_path: Path) -> None:
    rpm = str(make("rpm", tmp_path / "out"))
    scripts = run("rpm", "-qp", "--scripts", rpm)
    parts = re.split(r"^(\w+) scriptlet \(using /bin/sh\):$", scripts, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    lifecycle = (REPOSITORY / "guest/packaging/lifecycle.sh").read_text()
    assert found.keys() == {"postinstall", "preuninstall", "postuninstall"}
    for name, end in (
        ("postinstall", "settle_in"),
        ("preuninstall", 'if [ "$1" = 0 ]; then step_down; fi'),
        ("postuninstall", 'if [ "$1" = 0 ]; then step_away; fi'),
    ):
        assert found[name].strip().startswith(lifecycle.strip())
        assert found[name].strip().endswith(end)
    needs = {line for line in run("rpm", "-qp", "--requires", rpm).splitlines() if not line.startswith("rpmlib(")}
    assert needs == {"/bin/sh", "/usr/bin/python3", "findutils"}


@needs_deb
def test_the_manual_describes_every_key_of_the_configuration(tmp_path: Path) -> None:
    files = read_deb(make("deb", tmp_path / "out"), "--fsys-tarfile")
    packed = files["usr/share/man/man8/unhinged-agent.8.gz"]
    assert isinstance(packed, bytes)
    manual = gzip.decompress(packed).decode()
    described = re.findall(r"^\.TP\n\.B ([a-z\\_]+)\n\S", manual.partition(".SH CONFIGURATION")[2], re.MULTILINE)
    assert [name.replace("\\_", "_") for name in described] == list(config.KEYS)


@pytest.mark.parametrize("name", ["config.json", "strict.json"])
def test_the_agent_takes_the_shipped_configurations(name: str) -> None:
    path = REPOSITORY / "guest" / "packaging" / name
    assert isinstance(json.loads(path.read_text()), dict)
    config.load(str(path), True)


# The oldest Python we promise, from the Debian release that had it.
_OLD_RELEASE = "bullseye"
_OLD_PACKAGES = ("python3.9-minimal", "libpython3.9-minimal", "libpython3.9-stdlib", "libssl1.1", "libffi7")


def fetch_old_python(directory: Path) -> str:
    """Python 3.9 of Debian 11, unpacked below `directory`; gives the program that runs it."""
    for name in ("lists/partial", "archives/partial", "root"):
        (directory / name).mkdir(parents=True)
    source = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian"
    (directory / "sources.list").write_text(f"{source} {_OLD_RELEASE} main\n")
    options = {
        "Dir::Etc::sourcelist": f"{directory}/sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::lists": f"{directory}/lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(directory),
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    for action in (["update"], ["download", *_OLD_PACKAGES]):
        done = subprocess.run([*apt, *action], cwd=directory, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode != 0:
            pytest.skip(f"Python 3.9 of Debian 11 cannot be fetched: {done.stderr.strip()[-200:]}")
    root = directory / "root"
    for package in directory.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(root))
    start = directory / "python3.9"
    start.write_text(
        f"#!/bin/sh\nexport PYTHONHOME={root}/usr LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu\n"
        f'exec {root}/usr/bin/python3.9 "$@"\n'
    )
    start.chmod(0o755)
    return str(start)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="Python 3.9 comes from Debian: needs apt-get")
def test_python_3_9_runs_the_agent_and_reads_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = fetch_old_python(tmp_path / "old")
    assert run(python, "--version").startswith("Python 3.9.")
    pyz = make("pyz", tmp_path / "out")
    assert run(python, str(pyz), "--version") == f"unhinged-agent {VERSION}\n"
    monkeypatch.setattr(sys, "executable", python)
    answer_as_agent(pyz, tmp_path, VERSION)
    # Handlers are imported at their first call, so each module is imported here once.
    with zipfile.ZipFile(pyz) as archive:
        modules = [
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if not name.endswith("__main__.py")
        ]
    script = "import sys; sys.path.insert(0, sys.argv[1]); [__import__(name) for name in sys.argv[2:]]"
    run(python, "-I", "-S", "-c", script, str(pyz), *modules)
