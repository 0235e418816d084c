"""Where in the file system a call may go (guest floor): the keys `read_paths`, `write_paths` and `denied_paths`.

Used by every handler that takes a path. A path is turned into a `Place` once, a held directory and a name in it; from
then on nobody uses the path again, so nothing that is renamed or linked meanwhile leads elsewhere.

With rules the way there is walked by hand: each directory is opened without following links, links are read and
followed here, `..` goes back to the directory we came from, and the rules are asked before each step, so that a
refusal does not even tell what exists. What was opened is asked once more by the name that the kernel has for it.
Without rules the kernel walks.

What is denied is known by its name, by itself (a held descriptor, so renaming it does not help) and by where it lies
in its file system (so another mount of it, or of a part of it, does not help). A hard link to a file in a denied
directory cannot be known.
"""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READ = "read_paths"
WRITE = "write_paths"

# Source: path_resolution(7), "the maximum number of links followed is 40".
_MAX_LINKS = 40
_ACROSS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening waits for nobody at the other end of a FIFO, and makes no terminal ours.
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class Denied(PermissionError):
    """The configuration does not let a call go there."""

    def __init__(self, path: bytes, key: str) -> None:
        super().__init__(13, "not permitted by %s of the agent's configuration" % key, show(path))
        self.key = key


def show(path: bytes) -> str:
    """A path as text that can be sent; what is not UTF-8 in it appears as U+FFFD."""
    return path.decode("utf-8", "replace")


class Place:
    """A name in a held directory: where a call may go. Close it when the call is done with it.

    Attributes:
        dir_fd: The directory, opened with O_PATH.
        name: Not a link that was to be followed; `.` for the root.
        path: As the walk found it; only for messages and for the rules.
    """

    __slots__ = ("_intent", "_policy", "dir_fd", "name", "path")

    def __init__(self, policy: "Policy", intent: str, dir_fd: int, name: bytes, path: bytes) -> None:
        self._policy = policy
        self._intent = intent
        self.dir_fd = dir_fd
        self.name = name
        self.path = path

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.dir_fd >= 0:
            os.close(self.dir_fd)
            self.dir_fd = -1

    def stat(self) -> "os.stat_result":
        return os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=False)

    def find_stat(self) -> "os.stat_result | None":
        """As `stat`; None when nothing is there."""
        try:
            return self.stat()
        except FileNotFoundError:
            return None

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Opens what is there, without following a link; with O_CREAT it may be made.

        Raises:
            OSError: It cannot be opened, or is not where the rules allow (nothing was changed then).
        """
        if flags & os.O_CREAT:
            self._policy.check_fd(self.dir_fd, self._intent, self.name)
        fd = os.open(self.name, flags | _SAFELY, mode, dir_fd=self.dir_fd)
        try:
            self._policy.check_fd(fd, self._intent)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_file(self, flags: int, mode: int = 0o600) -> int:
        """As `open`, for a regular file; nothing else is opened, because opening some devices has effects."""
        seen = self.find_stat()
        if seen is not None:
            self._check_regular(seen)
        fd = self.open(flags, mode)
        try:
            self._check_regular(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def check(self) -> None:
        """Asks the rules again, just before something is made, renamed or removed here."""
        self._policy.check_fd(self.dir_fd, self._intent, self.name)

    def _check_regular(self, seen: "os.stat_result") -> None:
        if stat.S_ISDIR(seen.st_mode):
            raise IsADirectoryError(21, "it is a directory", show(self.path))
        if not stat.S_ISREG(seen.st_mode):
            raise OSError(22, "it is not a regular file", show(self.path))


class Policy:
    """The rules about paths.

    Args:
        read, write: Absolute paths below which calls may read or write; None for everywhere.
        denied: Absolute paths below which they may do neither.
    """

    def __init__(self, read: "list[str] | None", write: "list[str] | None", denied: "list[str]") -> None:
        self.free = read is None and write is None and not denied
        self._allowed = {READ: _build_prefixes(read), WRITE: _build_prefixes(write)}
        # What leads to an allowed place by its configured name may be walked through as well.
        self._ways = {READ: _build_ways(read), WRITE: _build_ways(write)}
        names = [_normal(path.encode()) for path in denied] + (_build_prefixes(denied) or [])
        self._denied = list(dict.fromkeys(names))
        self._held = [fd for fd in map(_hold, self._denied) if fd >= 0]
        self._inner = _list_inner(self._denied)

    def close(self) -> None:
        """Lets go of what it holds; it is of no more use."""
        for fd in self._held:
            os.close(fd)
        self._held = []

    # Finding

    def find(self, path: bytes, intent: str, follow: bool = True) -> Place:
        """Gives the place that the absolute `path` leads to; the last name need not exist.

        Args:
            follow: Whether a link at the end is followed.

        Raises:
            OSError: The way there does not exist or is not permitted.
        """
        if self.free:
            return self._find_freely(path, intent, follow)
        return _Walk(self, intent, follow).run(path)

    def _find_freely(self, path: bytes, intent: str, follow: bool) -> Place:
        for _ in range(_MAX_LINKS):
            directory, _, name = path.rstrip(b"/").rpartition(b"/")
            place = Place(self, intent, os.open(directory or b"/", _ACROSS), name or b".", path)
            if not follow:
                return place
            try:
                target = os.readlink(place.name, dir_fd=place.dir_fd)
            except OSError:
                return place  # no link; whatever else is wrong shows when it is used
            place.close()
            path = os.path.join(directory or b"/", target)
        raise OSError(40, "too many levels of symbolic links", show(path))

    # Asking

    def is_within(self, path: bytes, intent: str) -> bool:
        """Whether the rules allow the real path `path`, by its name alone."""
        allowed = self._allowed[intent]
        return (allowed is None or _is_below(path, allowed)) and not _is_below(path, self._denied)

    def holds_denied(self, path: bytes) -> bool:
        """Whether something denied lies below the real path `path`, or may come to lie there."""
        return any(_is_below(denied, [path]) for denied in self._denied)

    def check_step(self, path: bytes, intent: str) -> None:
        """Refuses a step of a walk that leads neither into nor towards a place that is allowed."""
        if _is_below(path, self._denied):
            raise Denied(path, "denied_paths")
        allowed = self._allowed[intent]
        if allowed is not None and not _is_below(path, allowed) and path not in self._ways[intent]:
            raise Denied(path, intent)

    def check_path(self, path: bytes, intent: str) -> None:
        """Refuses a real path that the rules do not allow, by its name alone."""
        if not self.is_within(path, intent):
            raise Denied(path, "denied_paths" if _is_below(path, self._denied) else intent)

    def check_fd(self, fd: int, intent: str, name: bytes = b"") -> None:
        """Refuses what is open as `fd`, or `name` in it, where it lies now.

        Raises:
            Denied: The rules do not allow it.
            OSError: The kernel does not say where it is: without /proc nothing is allowed.
        """
        if self.free:
            return
        path = os.readlink(b"/proc/self/fd/%d" % fd)
        if not path.startswith(b"/"):
            raise Denied(path, intent)
        path = path[:-10] if path.endswith(b" (deleted)") and not os.fstat(fd).st_nlink else path
        if name not in (b"", b"."):
            path = path.rstrip(b"/") + b"/" + name
        self.check_path(path, intent)
        if self._denied:
            self._check_inner(fd, name, path)

    def check_itself(self, fd: int, path: bytes) -> None:
        """Refuses a denied directory or file under whatever name it has now."""
        if self._denied and _identify(os.fstat(fd)) in self._list_denied():
            raise Denied(path, "denied_paths")

    def _list_denied(self) -> "set[tuple[int, int]]":
        found = {_identify(os.fstat(fd)) for fd in self._held}
        for path in self._denied:
            try:
                found.add(_identify(os.stat(path, follow_symlinks=False)))
            except OSError:
                continue  # it is not there, so it cannot be reached either
        return found

    def _check_inner(self, fd: int, name: bytes, path: bytes) -> None:
        """Compares places inside their file systems: what is mounted twice has two paths, and one such place."""
        self.check_itself(fd, path)
        device, inner = _find_inner(_read_mounts()[_read_mount_id(fd)], path)
        for denied_device, denied_inner in self._inner + _list_inner(self._denied):
            if denied_device == device and _is_below(inner, [denied_inner]):
                raise Denied(path, "denied_paths")


class _Walk:
    """One path followed by hand, with a descriptor for each directory on the way."""

    def __init__(self, policy: Policy, intent: str, follow: bool) -> None:
        self._policy = policy
        self._intent = intent
        self._follow = follow
        self._links = 0
        self._stack: "list[tuple[int, bytes]]" = []

    def run(self, path: bytes) -> Place:
        self._stack = [(os.open(b"/", _ACROSS), b"")]
        try:
            todo = _split(path)
            name = b""
            while todo:
                name = b""
                part = todo.pop()
                if part == b"..":
                    if len(self._stack) > 1:
                        os.close(self._stack.pop()[0])
                else:
                    name = part
                    if not self._step(part, todo):
                        name = b""
                        continue
            if not name and len(self._stack) > 1:  # the path ended with `..`
                fd, name = self._stack.pop()
                os.close(fd)
            place_path = self._join(name)
            self._policy.check_path(place_path, self._intent)
            return Place(self._policy, self._intent, os.dup(self._stack[-1][0]), name or b".", place_path)
        finally:
            for fd, _ in self._stack:
                os.close(fd)

    def _step(self, name: bytes, todo: "list[bytes]") -> bool:
        """Takes one step; True when it was the last one and `name` stays as the name in the top directory."""
        path = self._join(name)
        self._policy.check_step(path, self._intent)
        last = not todo
        try:
            fd = os.open(name, _LOOK, dir_fd=self._stack[-1][0])
        except FileNotFoundError:
            if last:
                return True
            raise FileNotFoundError(2, os.strerror(2), show(path)) from None
        try:
            self._policy.check_itself(fd, path)
            seen = os.fstat(fd)
            if stat.S_ISLNK(seen.st_mode) and not (last and not self._follow):
                self._take_link(fd, seen, path, todo)
                return False
            if last:
                return True
            if not stat.S_ISDIR(seen.st_mode):
                raise NotADirectoryError(20, os.strerror(20), show(path))
            self._stack.append((fd, name))
            fd = -1
            return False
        finally:
            if fd >= 0:
                os.close(fd)

    def _take_link(self, fd: int, seen: "os.stat_result", path: bytes, todo: "list[bytes]") -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(40, "too many levels of symbolic links", show(path))
        target = os.readlink(b"", dir_fd=fd)
        # Where a link of /proc leads is not what its text says. Those that are plain text (/proc/self) are relative.
        if (seen.st_dev == _read_proc_device() or seen.st_size != len(target)) and (
            target.startswith(b"/") or b":[" in target
        ):
            raise Denied(path, self._intent)
        if target.startswith(b"/"):
            for held, _ in self._stack[1:]:
                os.close(held)
            del self._stack[1:]
        todo.extend(_split(target))

    def _join(self, name: bytes) -> bytes:
        return b"/".join([part for _, part in self._stack] + ([name] if name else [])) or b"/"


def _split(path: bytes) -> "list[bytes]":
    """The parts of a path, the first one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _normal(path: bytes) -> bytes:
    return b"/" + b"/".join(reversed(_split(path))) if path.strip(b"/") else b"/"


def _build_prefixes(paths: "list[str] | None") -> "list[bytes] | None":
    """The places the configuration names, as they really are; a part that does not exist yet is taken as it stands."""
    return None if paths is None else [os.path.realpath(path.encode()) for path in paths]


def _build_ways(paths: "list[str] | None") -> "set[bytes]":
    """Every directory on the way to the places, by their configured and by their real names."""
    ways = set()
    for path in paths or ():
        for way in (_normal(path.encode()), os.path.realpath(path.encode())):
            while way != b"/":
                ways.add(way)
                way = os.path.dirname(way)
    return ways


def _is_below(path: bytes, prefixes: "list[bytes]") -> bool:
    return any(path == prefix or prefix == b"/" or path.startswith(prefix + b"/") for prefix in prefixes)


def _hold(path: bytes) -> int:
    try:
        return os.open(path, _LOOK)
    except FileNotFoundError:
        return -1  # it is known by its name until it is there


def _list_inner(paths: "list[bytes]") -> "list[tuple[bytes, bytes]]":
    """Where each path lies inside its file system, by the mounts there are now."""
    found = []
    mounts = _read_mounts().values() if paths else ()
    for path in paths:
        best = None
        for mount in mounts:
            # Of two mounts on one directory the later one is seen.
            if _is_below(path, [mount[2]]) and (best is None or len(mount[2]) >= len(best[2])):
                best = mount
        if best is not None:
            found.append(_find_inner(best, path))
    return found


def _identify(seen: "os.stat_result") -> "tuple[int, int]":
    return seen.st_dev, seen.st_ino


def _read_proc_device() -> int:
    return os.stat("/proc").st_dev


def _read_mounts() -> "dict[bytes, tuple[bytes, bytes, bytes]]":
    """Each mount by its number: device, the directory of the file system that is mounted, and where.

    Source: proc(5), /proc/PID/mountinfo.
    """
    mounts = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ", 5)
            mounts[fields[0]] = (fields[2], _unescape(fields[3]), _unescape(fields[4]))
    return mounts


def _unescape(text: bytes) -> bytes:
    # Source: Linux, fs/seq_file.c, mangle_path: these four are written as octal numbers.
    for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        text = text.replace(escape, byte)
    return text


def _read_mount_id(fd: int) -> bytes:
    """Source: proc(5), /proc/PID/fdinfo, `mnt_id`."""
    with open("/proc/self/fdinfo/%d" % fd, "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return line[7:].strip()
    raise OSError(38, "this kernel does not say on which mount a file lies")


def _find_inner(mount: "tuple[bytes, bytes, bytes]", path: bytes) -> "tuple[bytes, bytes]":
    """The device and the path inside its file system of `path`, which lies on `mount`."""
    device, root, point = mount
    rest = path[len(point) :] if point != b"/" else path
    return device, _normal(root + b"/" + rest)


def build(config: "dict[str, Any]") -> Policy:
    """The rules of a configuration."""
    return Policy(config["read_paths"], config["write_paths"], config["denied_paths"])
