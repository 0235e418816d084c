"""Replaces a small file of the system as a whole (guest floor): whoever reads it sees the old text or the new one."""

import os


def replace(path: str, text: str, mode: int = 0o644) -> None:
    """Writes `text` beside `path` and renames it there; owner and mode of a file that was there stay.

    Raises:
        OSError: `path` is as it was.
    """
    data = text.encode("utf-8", "surrogateescape")
    owner = None
    path = os.path.realpath(path)  # where a distribution keeps a link, the file behind it is meant
    try:
        before = os.stat(path)
    except FileNotFoundError:
        pass
    else:
        mode, owner = before.st_mode & 0o7777, (before.st_uid, before.st_gid)
    part = "%s/.%s.%s.unhinged-part" % (os.path.dirname(path), os.path.basename(path), os.urandom(4).hex())
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
        if owner is not None:
            os.fchown(fd, owner[0], owner[1])
        os.fchmod(fd, mode)
        os.fsync(fd)
        os.rename(part, path)
    except BaseException:
        os.unlink(part)
        raise
    finally:
        os.close(fd)


def write_over(path: str, old: str, new: str) -> bool:
    """Writes `new` over `old`, which is as long and all that the file holds; whether that could be done.

    Less work than `replace`, and no less whole: so few bytes are written at once.

    Raises:
        OSError: As open(2) and pwrite(2).
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        before, after = old.encode(), new.encode()
        if len(before) != len(after) or os.read(fd, len(before) + 1) != before:
            return False
        return os.pwrite(fd, after, 0) == len(after)
    finally:
        os.close(fd)


def read(path: str, limit: int = 4 * 1024 * 1024) -> str:
    """The whole of a file, empty when there is none; bytes that are not UTF-8 come through unchanged.

    Raises:
        OSError: It cannot be read, or has more than `limit` bytes (EFBIG).
    """
    try:
        with open(path, "rb", 0) as file:
            parts: "list[bytes]" = []
            size = 0
            while True:
                data = file.read(65536)
                size += len(data)
                if size > limit:
                    raise OSError(27, "it has more than %d bytes" % limit, path)
                if not data:
                    return b"".join(parts).decode("utf-8", "surrogateescape")
                parts.append(data)
    except FileNotFoundError:
        return ""
