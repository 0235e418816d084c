"""Software packages through apt and dpkg, where they are (guest floor); for the `package_*` methods and at first boot.

Nobody is there to be asked anything: apt gets every answer beforehand. What is installed is never cut in half: a
cancellation ends the download, or waits for the installation. Source: apt-get(8), apt.conf(5), dpkg-query(1).
"""

from time import monotonic

from . import dispatch, process, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .transcript import Transcript

LOCK_S = 60
_DOWNLOAD_S = 3600.0
_INSTALL_S = 3600.0
_QUERY_S = 60.0
_MAX_LIST_BYTES = 16 * 1024 * 1024
_MAX_CHANGES = 1000
_RETRY_S = 0.5
_FORMAT = "${binary:Package}\\t${Version}\\t${Architecture}\\t${db:Status-Status}\\t${Installed-Size}\\n"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+.-")
_VERSION_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.+-:~")
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "APT_LISTCHANGES_FRONTEND": "none",
    "NEEDRESTART_MODE": "a",
    "LC_ALL": "C.UTF-8",
}


def is_name(value: object) -> bool:
    """Whether `value` is the name of a package, perhaps with `:ARCHITECTURE`, as Debian Policy 5.6.1 has it.

    A name that ends with `-` would make apt remove what it was to install.
    """
    if not isinstance(value, str) or not 2 <= len(value) <= 128:
        return False
    name, colon, architecture = value.partition(":")
    if colon and not (architecture.isalnum() and architecture.isascii()):
        return False
    return len(name) > 1 and name[0].isalnum() and name[-1] != "-" and _NAME_CHARACTERS.issuperset(name)


def is_wish(value: object) -> bool:
    """Whether `value` is a name, perhaps with `=VERSION`."""
    if not isinstance(value, str):
        return False
    name, equals, version = value.partition("=")
    return is_name(name) and (not equals or (1 <= len(version) <= 128 and _VERSION_CHARACTERS.issuperset(version)))


def require_apt() -> None:
    """Makes sure that there is an apt.

    Raises:
        CallError: There is none.
    """
    if process.find_program("apt-get", process.build_environment()) is None:
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no apt")


def read_installed() -> "Generator[Any, Any, dict[str, dict[str, Any]]]":
    """The packages that are installed, by name; a foreign architecture stands behind the name (`libc6:i386`)."""
    result = yield steps.Run(["dpkg-query", "--show", "--showformat=" + _FORMAT], limit=_MAX_LIST_BYTES)
    steps.check_success(result, "dpkg-query")
    found = {}
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        fields = line.split("\t")
        if len(fields) == 5 and fields[3] not in ("not-installed", "config-files"):
            name, version, architecture, state, kib = fields
            size = int(kib) * 1024 if kib.isdigit() else 0
            found[name] = {
                "name": name[:256],
                "version": version[:256],
                "architecture": architecture[:64],
                "state": state[:64],
                "installed_bytes": size,
            }
    return found


def install(
    names: "list[str]", transcript: "Transcript", refresh: bool, lock_s: float
) -> "Generator[Any, Any, dict[str, Any]]":
    """Installs packages, or brings them to the newest or the named version.

    Raises:
        CallError: A package is not known, or apt failed: the text holds the last it said.
    """
    if refresh:
        yield from update_lists(transcript, lock_s)
    yield from _require_known(names)
    return (yield from _change(["install"], names, transcript, lock_s, True))


def remove(
    names: "list[str]", transcript: "Transcript", purge: bool, lock_s: float
) -> "Generator[Any, Any, dict[str, Any]]":
    """Removes packages, with `purge` their configuration too.

    Raises:
        CallError: One is not installed, or apt failed.
    """
    yield from _require_installed(names)
    return (yield from _change(["purge" if purge else "remove"], names, transcript, lock_s, False))


def upgrade(
    names: "list[str] | None", transcript: "Transcript", lists_only: bool, lock_s: float
) -> "Generator[Any, Any, dict[str, Any]]":
    """Fetches the lists of packages, then brings the named packages, or all, to their newest version.

    Raises:
        CallError: A package is not installed, or apt failed.
    """
    yield from update_lists(transcript, lock_s)
    if lists_only:
        return {"changed": [], "changed_total": 0}
    if names is None:
        return (yield from _change(["upgrade", "--with-new-pkgs"], [], transcript, lock_s, True))
    yield from _require_installed(names)
    return (yield from _change(["install", "--only-upgrade"], names, transcript, lock_s, True))


def update_lists(transcript: "Transcript", lock_s: float) -> "Generator[Any, Any, None]":
    # By itself apt takes a list it could not fetch for a warning.
    argv = _build_argv(["update", "-o", "APT::Update::Error-Mode=any"], [], lock_s)
    yield from _run(argv, transcript, lock_s, _DOWNLOAD_S, True)


def _change(
    action: "list[str]", names: "list[str]", transcript: "Transcript", lock_s: float, download: bool
) -> "Generator[Any, Any, dict[str, Any]]":
    before = yield from read_installed()
    if download:
        argv = _build_argv([*action, "--download-only"], names, lock_s)
        yield from _run(argv, transcript, lock_s, _DOWNLOAD_S, True)
    yield from _run(_build_argv(action, names, lock_s), transcript, lock_s, _INSTALL_S, False)
    after = yield from read_installed()
    changed = []
    for name in sorted(before.keys() | after.keys()):
        old = before[name]["version"] if name in before else None
        new = after[name]["version"] if name in after else None
        if old != new:
            changed.append({"name": name[:256], "before": old, "after": new})
    return {"changed": changed[:_MAX_CHANGES], "changed_total": len(changed)}


def _require_known(names: "list[str]") -> "Generator[Any, Any, None]":
    """Refuses a name before anything is done with the others."""
    for wish in names:
        name = wish.partition("=")[0]
        # `show` says a record of exactly this package, or fails; a virtual package it does not know.
        argv = ["apt-cache", "show", "--no-all-versions", "-o", "APT::Cmd::Pattern-Only=true", "--", name]
        result = yield steps.Run(argv, timeout_s=_QUERY_S, limit=4096)
        if result.exit_code != 0 or not result.stdout:
            raise dispatch.CallError(dispatch.NOT_FOUND, "there is no package %s to install" % name)


def _require_installed(names: "list[str]") -> "Generator[Any, Any, None]":
    installed = yield from read_installed()
    # A package that may be there for several architectures is listed with its own behind the name.
    known = set(installed) | {name.partition(":")[0] for name in installed}
    for name in names:
        if name not in known:
            raise dispatch.CallError(dispatch.NOT_FOUND, "the package %s is not installed" % name)


def _run(
    argv: "list[str]", transcript: "Transcript", lock_s: float, timeout_s: float, stoppable: bool
) -> "Generator[Any, Any, None]":
    """Runs apt, again and again while somebody else holds a lock that it does not wait for itself."""
    until = monotonic() + lock_s
    while True:
        result = yield steps.Run(
            argv, timeout_s=timeout_s, environment=_ENVIRONMENT, transcript=transcript, stoppable=stoppable
        )
        locked = b"Could not get lock" in result.stderr or b"Unable to lock" in result.stderr
        if result.exit_code != 0 and locked and not result.timed_out:
            if monotonic() >= until:
                text = "somebody else holds the lock of the packages for %g s" % lock_s
                raise dispatch.CallError(dispatch.BUSY, text)
            yield _RETRY_S
            continue
        steps.check_success(result, "apt-get")
        return


def _build_argv(action: "list[str]", names: "list[str]", lock_s: float) -> "list[str]":
    argv = ["apt-get", "--yes", "--quiet"]
    for option in (
        # Without it apt takes an unknown name for a regular expression.
        "APT::Cmd::Pattern-Only=true",
        "DPkg::Lock::Timeout=%d" % int(lock_s),
        "Dpkg::Use-Pty=0",
        # What the user changed in a configuration file stays; what they did not change is brought up to date.
        "Dpkg::Options::=--force-confdef",
        "Dpkg::Options::=--force-confold",
    ):
        argv += ["-o", option]
    return [*argv, *action, "--", *names] if names else [*argv, *action]
