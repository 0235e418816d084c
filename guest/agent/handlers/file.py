"""`file_read`, `file_write`, `file_stat`, `file_list`, `file_mkdir`, `file_rename` and `file_remove` (guest floor)."""

import os
import stat
from zlib import crc32

from .. import dispatch, files, flows, parameters, streams, wire
from ..filewriter import FileWriter
from ..pathpolicy import READ, WRITE, Denied, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call
    from ..pathpolicy import Place

    Work = Generator[Any, Any, "dict[str, Any] | None"]

_READ_BYTES = 262144
# What may be around the text of a file on its line.
_ENVELOPE_BYTES = 1024
_MAX_LIST = 1000
_DEFAULT_LIST = 200
_MAX_PAGE_BYTES = wire.MAX_ANSWER_BYTES * 3 // 4
# Names are taken from the kernel so many at a time before others have their turn.
_NAMES_PER_STEP = 256


# Reading


def file_read(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _read(call, path, params))


def _read(call: "Call", path: bytes, params: "dict[str, Any]") -> "Work":
    offset = params.get("offset", 0)
    with call.agent.guard.paths.find(path, READ) as place:
        fd = place.open_file(os.O_RDONLY)
    if "stream" in params:
        try:
            return _read_stream(call, path, params, fd, offset)
        except BaseException:
            os.close(fd)
            raise
    try:
        limit = call.agent.config["file_text_bytes"]
        data, end = yield from _read_some(fd, offset, min(limit, params.get("length", limit)))
        return _build_text(data, end, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _read_some(fd: int, offset: int, length: int) -> "Generator[None, None, tuple[bytes, bool]]":
    """At most `length` bytes, and whether the file ends with them."""
    data = b""
    while len(data) <= length:
        piece = os.pread(fd, min(65536, length + 1 - len(data)), offset + len(data))
        if not piece:
            return data, True
        data += piece
        yield
    return data[:length], False


def _build_text(data: bytes, end: bool, size: int) -> "dict[str, Any]":
    """The answer, shortened until it fits on a line; a character is not cut in two."""
    while True:
        if not end:
            data = _cut_character(data)
        answer: "dict[str, Any]" = {"bytes": len(data), "size": size, "end": end}
        files.add_text(answer, "text", data)
        if len(data) < 65536 or len(wire.encode(answer)) + _ENVELOPE_BYTES <= wire.MAX_ANSWER_BYTES:
            return answer
        data, end = data[: len(data) // 2], False


def _cut_character(data: bytes) -> bytes:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start:
            return data[: error.start]
    return data


def _read_stream(call: "Call", path: bytes, params: "dict[str, Any]", fd: int, offset: int) -> "dict[str, Any]":
    from .transfer import build_end

    job = call.start_job()
    work = _send(fd, offset, params.get("length"), call.agent.config["transfer_bytes"])
    flow = flows.Outflow(call.agent, work, build_end(job, path), params["stream"])
    job.on_cancel = flow.cancel
    return {"job": job.id, "size": os.fstat(fd).st_size}


def _send(fd: int, offset: int, length: "int | None", limit: int) -> "Generator[bytes, None, dict[str, Any]]":
    sent = crc = 0
    try:
        while length is None or sent < length:
            data = os.pread(fd, _READ_BYTES if length is None else min(_READ_BYTES, length - sent), offset + sent)
            if not data:
                break
            sent += len(data)
            if limit and sent > limit:
                raise files.TooLarge("more than transfer_bytes of the agent's configuration")
            crc = crc32(data, crc)
            yield data
        return {"bytes": sent, "crc32": crc}
    finally:
        os.close(fd)


# Writing


def file_write(call: "Call", params: "dict[str, Any]") -> None:
    if ("text" in params) == ("stream" in params):
        raise dispatch.CallError(dispatch.INVALID_PARAMS, "exactly one of text and stream is given", {"key": "text"})
    if params.get("append") and "offset" in params:
        raise dispatch.CallError(dispatch.INVALID_PARAMS, "append and offset exclude each other", {"key": "offset"})
    path = files.encode(params["path"])
    files.answer(call, path, _write(call, path, params))


def _write(call: "Call", path: bytes, params: "dict[str, Any]") -> "Work":
    from .transfer import build_end

    agent = call.agent
    text = params.get("text", "").encode("utf-8")
    if len(text) > agent.config["file_text_bytes"]:
        raise files.TooLarge("more than file_text_bytes of the agent's configuration")
    place = agent.guard.paths.find(path, WRITE)
    try:
        writer = FileWriter(place, params, agent.config["transfer_bytes"])
        if "stream" not in params:
            writer.view = memoryview(text)
            call.on_cancel = flows.Inflow(agent, writer, _build_answer(call, path), None).cancel
            return None
        job = call.start_job()
        flow = flows.Inflow(agent, writer, build_end(job, path), params["stream"])
    except BaseException:
        place.close()
        raise
    job.on_cancel = flow.cancel
    yield
    return {"job": job.id}


def _build_answer(call: "Call", path: bytes) -> "Any":
    def done(result: "Any", error: "Exception | None") -> None:
        if error is None:
            call.done({"bytes": result["bytes"], "size": result["size"]})
            return
        files.fail(call, path, error)

    return done


# Looking


def file_stat(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _stat(call, path, params.get("follow", True)))


def _stat(call: "Call", path: bytes, follow: bool) -> "Work":
    with call.agent.guard.paths.find(path, READ, follow) as place:
        place.check()
        seen = place.stat()
        answer = {
            "type": files.describe_type(seen.st_mode),
            "size": seen.st_size,
            "allocated_bytes": seen.st_blocks * 512,
            "mode": seen.st_mode & 0o7777,
            "uid": seen.st_uid,
            "gid": seen.st_gid,
            "links": seen.st_nlink,
            "inode": str(seen.st_ino),
            "device": "%d:%d" % (os.major(seen.st_dev), os.minor(seen.st_dev)),
            "mtime_ns": files.clamp_time(seen.st_mtime_ns),
            "atime_ns": files.clamp_time(seen.st_atime_ns),
            "ctime_ns": files.clamp_time(seen.st_ctime_ns),
        }
        if stat.S_ISLNK(seen.st_mode):
            files.add_text(answer, "target", os.readlink(place.name, dir_fd=place.dir_fd))
        yield
    return answer


def file_list(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _list(call, path, params))


def _list(call: "Call", path: bytes, params: "dict[str, Any]") -> "Work":
    """One page of names in the order of their bytes. `after` and `next` are names in hexadecimal digits."""
    policy = call.agent.guard.paths
    limit = params.get("limit", _DEFAULT_LIST)
    with policy.find(path, READ) as place:
        fd = place.open(os.O_RDONLY | os.O_DIRECTORY)
    try:
        names, total = yield from _find_names(fd, bytes.fromhex(params.get("after", "")), limit + 1)
        entries: "list[dict[str, Any]]" = []
        size = 0
        last = None
        for number, name in enumerate(names[:limit]):
            entry = _describe(policy, fd, name)
            size += len(wire.encode(entry))
            if size > _MAX_PAGE_BYTES:
                break
            entries.append(entry)
            last = name
            if number % 32 == 0:
                yield
        more = len(names) > len(entries)
        return {"entries": entries, "total": total, "next": last.hex() if more and last else None}
    finally:
        os.close(fd)


def _find_names(fd: int, after: bytes, count: int) -> "Generator[None, None, tuple[list[bytes], int]]":
    """The first `count` names after `after`, and how many there are in all; holds a few of them only."""
    total = 0
    found: "list[bytes]" = []
    with os.scandir(fd) as entries:
        for entry in entries:
            total += 1
            name = os.fsencode(entry.name)
            if name > after:
                found.append(name)
                if len(found) >= 4 * count + _NAMES_PER_STEP:
                    found = sorted(found)[:count]
            if total % _NAMES_PER_STEP == 0:
                yield
    return sorted(found)[:count], total


def _describe(policy: "Any", fd: int, name: bytes) -> "dict[str, Any]":
    entry: "dict[str, Any]" = {}
    files.add_text(entry, "name", name)
    try:
        policy.check_fd(fd, READ, name)
        seen = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        entry["type"] = "unknown"  # it may not be looked at, has gone meanwhile, or its file system does not answer
        return entry
    entry["type"] = files.describe_type(seen.st_mode)
    entry["size"] = seen.st_size
    entry["mode"] = seen.st_mode & 0o7777
    entry["mtime_ns"] = files.clamp_time(seen.st_mtime_ns)
    return entry


# Changing


def file_mkdir(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _mkdir(call, path, params))


def _mkdir(call: "Call", path: bytes, params: "dict[str, Any]") -> "Work":
    policy = call.agent.guard.paths
    mode = params.get("mode", 0o755)
    missing = [path.rstrip(b"/") or b"/"]
    created = 0
    while missing:
        yield
        try:
            with policy.find(missing[-1], WRITE) as place:
                wanted = mode if len(missing) == 1 else 0o755
                created += _make_directory(place, wanted, bool(params.get("parents")))
            missing.pop()
        except FileNotFoundError:
            parent = os.path.dirname(missing[-1])
            if not params.get("parents") or parent == missing[-1]:
                raise
            missing.append(parent)
    return {"created": created}


def _make_directory(place: "Place", mode: int, existing: bool) -> int:
    """Makes it; gives how many that were: none when it was there and may be."""
    place.check()
    try:
        os.mkdir(place.name, 0o700, dir_fd=place.dir_fd)
    except FileExistsError:
        if existing and stat.S_ISDIR(place.stat().st_mode):
            return 0
        raise FileExistsError(17, os.strerror(17), show(place.path)) from None
    fd = place.open(os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchmod(fd, mode)  # whatever the agent's umask says
    finally:
        os.close(fd)
    return 1


def file_rename(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _rename(call, path, files.encode(params["to"]), params.get("replace", True)))


def _rename(call: "Call", path: bytes, to: bytes, replace: bool) -> "Work":
    policy = call.agent.guard.paths
    with policy.find(path, WRITE, False) as source, policy.find(to, WRITE, False) as target:
        for place in (source, target):
            place.check()
            _check_free_of_denied(call, place)
        source.stat()
        if not replace and target.find_stat() is not None:
            raise FileExistsError(17, os.strerror(17), show(to))
        os.rename(source.name, target.name, src_dir_fd=source.dir_fd, dst_dir_fd=target.dir_fd)
        yield
    return {}


def file_remove(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _remove(call, path, params.get("recursive", False)))


def _remove(call: "Call", path: bytes, recursive: bool) -> "Work":
    policy = call.agent.guard.paths
    with policy.find(path, WRITE, False) as place:
        place.check()
        _check_free_of_denied(call, place)
        seen = place.stat()
        if not stat.S_ISDIR(seen.st_mode):
            os.unlink(place.name, dir_fd=place.dir_fd)
        elif recursive and place.name != b".":
            from ..remover import remove_tree

            return {"removed": (yield from remove_tree(policy, place.dir_fd, place.name))}
        else:
            os.rmdir(place.name, dir_fd=place.dir_fd)
        yield
    return {"removed": 1}


def _check_free_of_denied(call: "Call", place: "Place") -> None:
    """What holds something denied stays where it is: elsewhere, or gone, it would be denied no longer."""
    if call.agent.guard.paths.holds_denied(place.path):
        raise Denied(place.path, "denied_paths")


def _check_cursor(value: object) -> "str | None":
    if isinstance(value, str) and len(value) <= 510 and len(value) % 2 == 0 and not value.strip("0123456789abcdef"):
        return None
    return "is not the next of an earlier page"


def _check_text(value: object) -> "str | None":
    return None if parameters.is_text(value, 0, wire.MAX_LINE_BYTES, "") else "is not a string that UTF-8 can carry"


_PATH = (True, files.check_path)
_SWITCH = (False, parameters.boolean)
_SIZE = (False, files.SIZE)
_MODE = (False, files.MODE)
_STREAM = (False, streams.check_number)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "file_read": (file_read, {"path": _PATH, "offset": _SIZE, "length": _SIZE, "stream": _STREAM}),
    "file_write": (
        file_write,
        {
            "path": _PATH,
            "text": (False, _check_text),
            "stream": _STREAM,
            "offset": _SIZE,
            "append": _SWITCH,
            "mode": _MODE,
            "create": _SWITCH,
            "exclusive": _SWITCH,
            "durable": _SWITCH,
        },
    ),
    "file_stat": (file_stat, {"path": _PATH, "follow": _SWITCH}),
    "file_list": (
        file_list,
        {"path": _PATH, "after": (False, _check_cursor), "limit": (False, parameters.integer(1, _MAX_LIST))},
    ),
    "file_mkdir": (file_mkdir, {"path": _PATH, "parents": _SWITCH, "mode": _MODE}),
    "file_rename": (file_rename, {"path": _PATH, "to": _PATH, "replace": _SWITCH}),
    "file_remove": (file_remove, {"path": _PATH, "recursive": _SWITCH}),
}
