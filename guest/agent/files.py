"""What the methods about files share (guest floor): paths, hidden files, errors, and waiting for a disk.

Used by `handlers/file.py` and `handlers/transfer.py` and the modules of trees. Paths are bytes inside the guest: a name
need not be text.
"""

import os
import stat

from . import dispatch, parameters, steps
from .loop import IN
from .pathpolicy import Denied, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .dispatch import Call
    from .loop import Loop

# Source: limits.h, PATH_MAX with its zero byte, and NAME_MAX.
_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255
_SUFFIX = b".unhinged-part"
# A machine whose /dev/null has become a file does not work any more.
_REPLACEABLE = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO)


class Corrupted(Exception):
    """What arrived is not what was sent, or not in the form that was agreed on."""


class TooLarge(Exception):
    """More than the configuration allows."""


# Paths and names


def check_path(value: object) -> "str | None":
    """The check of a parameter that is a path. Bytes that are not UTF-8 come as the surrogates U+DC80 to U+DCFF."""
    try:
        data = encode(value)  # type: ignore[arg-type]
    except (UnicodeEncodeError, AttributeError):
        return "is not an absolute path"
    if data.startswith(b"/") and len(data) <= _MAX_PATH_BYTES and b"\0" not in data:
        return None
    return "is not an absolute path"


def encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def decode(path: bytes) -> str:
    """The counterpart of `encode`; what is not UTF-8 can only be sent by `wire.encode_exactly`."""
    return path.decode("utf-8", "surrogateescape")


def add_text(answer: "dict[str, Any]", name: str, data: bytes) -> None:
    """Adds bytes as text; where they are none, also as they are, in NAME_base64."""
    try:
        answer[name] = data.decode("utf-8")
    except UnicodeDecodeError:
        import binascii

        answer[name] = data.decode("utf-8", "replace")
        answer[name + "_base64"] = binascii.b2a_base64(data, newline=False).decode("ascii")


def hide(name: bytes, kept: bool = False) -> bytes:
    """The name under which a file is written before it gets its own; `kept` for one that is found again."""
    tail = _SUFFIX if kept else b"." + os.urandom(6).hex().encode("ascii") + _SUFFIX
    if len(name) + len(tail) + 1 > _MAX_NAME_BYTES:
        import zlib

        name = name[: _MAX_NAME_BYTES - len(tail) - 10] + b"~%08x" % zlib.crc32(name)
    return b"." + name + tail


def describe_type(mode: int) -> str:
    """The word for a kind of file."""
    for test, word in (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISFIFO, "fifo"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "character-device"),
        (stat.S_ISBLK, "block-device"),
    ):
        if test(mode):
            return word
    return "unknown"


# Hidden files


class Hidden:
    """A new thing in a directory under a hidden name, which takes its own name when it is whole.

    Args:
        dir_fd: The directory; stays the caller's, and open until `commit` or `discard`.
        kept: Whether it stays when it is discarded, to be gone on with another time.
    """

    def __init__(self, dir_fd: int, name: bytes, kept: bool = False) -> None:
        self.dir_fd = dir_fd
        self.name = name
        self.part = hide(name, kept)
        self.kept = kept
        self.fd = -1
        self._exists = False
        self.before = find_stat(name, dir_fd)
        if self.before is not None and stat.S_ISDIR(self.before.st_mode):
            raise IsADirectoryError(21, "a directory is there already", show(name))
        if self.before is not None and stat.S_IFMT(self.before.st_mode) not in _REPLACEABLE:
            raise OSError(22, "a device or a socket is there", show(name))

    def open(self) -> int:
        """Makes it a file, or opens the one that was kept."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if self.kept and self._find_kept():
            self.fd = os.open(self.part, flags, dir_fd=self.dir_fd)
            if not _is_own_file(os.fstat(self.fd)):
                raise PermissionError(1, "somebody else has taken the hidden name", show(self.part))
        else:
            self.fd = os.open(self.part, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.dir_fd)
        self._exists = True
        return self.fd

    def _find_kept(self) -> bool:
        """Whether there is a part to go on with; what has its name and is none is removed.

        Anybody can tell this name. What somebody else made may still be open there, and what has a second name may be
        a file that is not to be touched.
        """
        found = find_stat(self.part, self.dir_fd)
        if found is not None and not _is_own_file(found):
            os.unlink(self.part, dir_fd=self.dir_fd)
            return False
        return found is not None

    def made(self) -> None:
        """It has been made as something else than a file."""
        self._exists = True

    def commit(self, exclusive: bool = False) -> None:
        """Gives it its name, in the place of what had it; `exclusive`: only if nothing has."""
        if exclusive:
            os.link(self.part, self.name, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd, follow_symlinks=False)
        else:
            os.rename(self.part, self.name, src_dir_fd=self.dir_fd, dst_dir_fd=self.dir_fd)
        try:
            # Renaming one of two links to a file to the other one does nothing. Source: rename(2).
            os.unlink(self.part, dir_fd=self.dir_fd)
        except FileNotFoundError:
            pass  # as it should be
        self._exists = False
        self.close()

    def discard(self) -> None:
        self.close()
        if self._exists and not self.kept:
            self._exists = False
            try:
                os.unlink(self.part, dir_fd=self.dir_fd)
            except FileNotFoundError:
                pass  # somebody else has cleared up

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def keep_owner(fd: int, before: "os.stat_result") -> None:
    """Gives a file the owner of the one it replaces; asked only where it differs, even root may be refused."""
    seen = os.fstat(fd)
    if os.geteuid() == 0 and (seen.st_uid, seen.st_gid) != (before.st_uid, before.st_gid):
        os.fchown(fd, before.st_uid, before.st_gid)


def clamp_time(time_ns: int) -> int:
    """A time that fits into 64 bits: a file system may know years after 2262."""
    return max(-(2**63), min(time_ns, 2**63 - 1))


def find_stat(name: bytes, dir_fd: int) -> "os.stat_result | None":
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_own_file(seen: "os.stat_result") -> bool:
    return stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 and seen.st_uid == os.geteuid()


def write_all(fd: int, data: "bytes | memoryview", offset: int) -> None:
    """Writes all of `data` at `offset`."""
    while len(data):
        count = os.pwrite(fd, data, offset)
        data = data[count:]
        offset += count


# Waiting for a disk


class Sync:
    """Waits until what was written to `fd` is on the disk, in a process of its own, because it may take long.

    Not a thread: changing the user for `run_as` would wait for it. Source: nptl(7), process credential changes.
    """

    def __init__(self, loop: "Loop", fd: int, done: "Callable[[], Any]") -> None:
        self._loop = loop
        self._done = done
        self.error = 0
        self._fd, write_end = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            code = 5
            try:
                os.fsync(fd)
                code = 0
            except OSError as error:
                code = error.errno or 5
            finally:
                os.write(write_end, bytes((code & 0xFF,)))
                os._exit(0)
        os.close(write_end)
        loop.add(self._fd, IN, lambda _events: self._end())

    def _end(self) -> None:
        self._loop.remove(self._fd)
        said = os.read(self._fd, 1)
        os.close(self._fd)
        os.waitpid(self._pid, 0)
        self.error = said[0] if said else 5
        self._done()


class NeedSync:
    """What a sink yields to wait until `fd` is on the disk."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd


def sync_directory(dir_fd: int) -> "Generator[NeedSync, Any, None]":
    """Waits until the names in a directory are on the disk; for a sink."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield NeedSync(fd)
    finally:
        os.close(fd)


# Answers


def refuse(error: Exception, path: "bytes | None" = None) -> "dispatch.CallError | None":
    """The error of a call that stands for what went wrong; None for a fault of the agent itself."""
    if isinstance(error, dispatch.CallError):
        return error
    if isinstance(error, Corrupted):
        return dispatch.CallError(dispatch.CORRUPTED, str(error))
    if isinstance(error, TooLarge):
        return dispatch.CallError(dispatch.TOO_LARGE, str(error))
    if not isinstance(error, OSError):
        return None
    name = error.filename if isinstance(error.filename, str) else None
    if name is None and isinstance(error.filename, bytes):
        name = show(error.filename)
    if path is not None and (name is None or not name.startswith("/")):
        name = show(path)
    refusal = steps.refuse(OSError(error.errno, error.strerror), name)
    if isinstance(error, Denied) and refusal.data is not None:
        refusal.data["key"] = error.key
    return refusal


def fail(call: "Call", path: bytes, error: Exception) -> None:
    """Answers the call with the error that stands for the exception."""
    steps.fail(call, refuse(error, path) or error)


def answer(call: "Call", path: bytes, work: "Generator[Any, Any, Any]") -> None:
    """Answers the call with what the work returns or raises, done in slices and as the user of `run_as`."""

    def done(value: "Any", error: "Exception | None") -> None:
        if error is None:
            if value is not None:
                call.done(value)
        else:
            fail(call, path, error)

    running = steps.Steps(call.agent.loop, call.agent.guard.run_as(work), done)
    call.on_cancel = running.cancel


SIZE = parameters.integer(0, 2**53)
MODE = parameters.integer(0, 0o7777)
