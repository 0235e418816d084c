"""The SSH keys that let a user in (guest floor): `~/.ssh/authorized_keys`, read and replaced without following links.

The user may write into that directory while the agent, as root, works in it. So every step goes through a directory
that is held open, and a name in it is never a link. Source: sshd(8), AUTHORIZED_KEYS FILE FORMAT; RFC 4253, 6.6.
"""

import os
import stat

from . import dispatch, usertables

_NAME = "authorized_keys"
_MAX_BYTES = 1024 * 1024
_TYPES = (
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip


class Key:
    """One key: its `type`, its `blob` in base64, the words after it."""

    __slots__ = ("blob", "comment", "fingerprint", "type")

    def __init__(self, type_: str, blob: str, comment: str, fingerprint: str) -> None:
        self.type = type_
        self.blob = blob
        self.comment = comment
        self.fingerprint = fingerprint

    def __str__(self) -> str:
        return "%s %s %s" % (self.type, self.blob, self.comment) if self.comment else "%s %s" % (self.type, self.blob)


def parse(line: str) -> "Key | None":
    """The key on a line of `authorized_keys`; None for anything else, also for a key with options before it."""
    words = line.split(None, 2)
    if len(words) < 2 or words[0] not in _TYPES:
        return None
    import binascii

    try:
        # The line was split at spaces, and the strict alphabet leaves no room for anything hidden.
        data = binascii.a2b_base64(words[1].encode("ascii"))
        if binascii.b2a_base64(data, newline=False).decode("ascii") != words[1]:
            return None
    except (ValueError, UnicodeEncodeError):
        return None
    type_ = words[0].encode("ascii")
    # What is encoded begins with the name of its type once more, and holds at least one number after that.
    length = int.from_bytes(data[:4], "big")
    if length != len(type_) or data[4 : 4 + length] != type_ or len(data) < 4 + length + 4 + 32:
        return None
    return Key(words[0], words[1], words[2].strip() if len(words) > 2 else "", _build_fingerprint(data))


def is_key(value: object) -> bool:
    """Whether `value` is one key on one line, without options."""
    if not isinstance(value, str) or len(value) > 16384 or any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        return False
    return value.isprintable() and value == value.strip() and parse(value) is not None


def list_keys(user: "usertables.User") -> "list[Key]":
    """The keys that let this user in; lines with options, and what sshd would not read either, are left out."""
    return [key for key in map(parse, _read_lines(user)) if key is not None]


def count_others(user: "usertables.User") -> int:
    """How many lines let somebody in, or try to, that `list_keys` does not show."""
    lines = [line.strip() for line in _read_lines(user)]
    return sum(1 for line in lines if line and line[0] != "#" and parse(line) is None)


def add_keys(user: "usertables.User", lines: "list[str]") -> int:
    """Lets the user in with these keys as well; gives how many were not there yet.

    Raises:
        CallError: The directory or the file is not the user's own, or a link. Nothing has changed.
    """
    before = _read(user)
    known = {key.blob for key in map(parse, before.split("\n")) if key is not None}
    added = []
    for line in lines:
        key = parse(line)
        if key is not None and key.blob not in known:
            known.add(key.blob)
            added.append(str(key))
    if added:
        if before and not before.endswith("\n"):
            before += "\n"
        _write(user, before + "\n".join(added) + "\n")
    return len(added)


def remove_keys(user: "usertables.User", blobs: "set[str]", fingerprints: "set[str]") -> int:
    """Takes away the keys with these contents or fingerprints, also where options stand before them; gives how many."""
    kept = []
    removed = 0
    for line in _read_lines(user):
        key = _find_key(line)
        if key is not None and (key.blob in blobs or key.fingerprint in fingerprints):
            removed += 1
        else:
            kept.append(line)
    if removed:
        _write(user, "".join(line + "\n" for line in kept))
    return removed


def _find_key(line: str) -> "Key | None":
    """The key of a line, options or not: whatever is to be removed must not be overlooked."""
    if line.lstrip()[:1] == "#":
        return None
    words = line.split()
    for index in range(len(words) - 1):
        key = parse(" ".join(words[index : index + 2]))
        if key is not None:
            return key
    return None


def _read_lines(user: "usertables.User") -> "list[str]":
    # A line feed alone ends a line for sshd. Any other sign would make a key of the rest of a comment.
    return _read(user).removesuffix("\n").split("\n")


def _read(user: "usertables.User") -> str:
    directory = _open_directory(user, False)
    if directory is None:
        return ""
    try:
        return _read_file(directory, user)
    finally:
        os.close(directory)


def _read_file(directory: int, user: "usertables.User") -> str:
    try:
        # Non-blocking: what has this name may be a FIFO.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(_NAME, flags, dir_fd=directory)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _refuse(user, error.strerror or "it is a link") from None
    try:
        seen = os.fstat(fd)
        # A second name might be one of a file that is not the user's to show.
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid not in (0, user.uid) or seen.st_nlink != 1:
            raise _refuse(user, "%s is not a file of its own" % _NAME)
        if seen.st_size > _MAX_BYTES:
            raise _refuse(user, "%s has more than %d bytes" % (_NAME, _MAX_BYTES))
        return os.read(fd, _MAX_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def _write(user: "usertables.User", text: str) -> None:
    directory = _open_directory(user, True)
    if directory is None:
        raise _refuse(user, "there is no home directory")
    part = ".%s.%s.unhinged-part" % (_NAME, os.urandom(4).hex())
    try:
        _read_file(directory, user)  # what is replaced must be ours to replace
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(part, flags, 0o600, dir_fd=directory)
        try:
            data = text.encode("utf-8", "surrogateescape")
            while data:
                data = data[os.write(fd, data) :]
            os.fchmod(fd, 0o600)
            os.fchown(fd, user.uid, user.gid)
            os.fsync(fd)
            os.rename(part, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            os.unlink(part, dir_fd=directory)
            raise
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def _open_directory(user: "usertables.User", make: bool) -> "int | None":
    """Opens `.ssh` in the user's home; None where it is not there and is not to be made."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        home = os.open(user.home, flags)
    except OSError:
        return None
    new = False
    try:
        if os.fstat(home).st_uid not in (0, user.uid):
            raise _refuse(user, "%s belongs to somebody else" % user.home)
        if make:
            try:
                os.mkdir(".ssh", 0o700, dir_fd=home)
            except FileExistsError:
                pass
            else:
                new = True
        try:
            directory = os.open(".ssh", flags | os.O_NOFOLLOW, dir_fd=home)
        except FileNotFoundError:
            return None
        except OSError:
            raise _refuse(user, ".ssh is not a directory, or a link") from None
    finally:
        os.close(home)
    seen = os.fstat(directory)
    if new and not os.listdir(directory):
        # Only now, and only while nothing is in it: the user may have put something else in its place.
        os.fchown(directory, user.uid, user.gid)
        seen = os.fstat(directory)
    if seen.st_uid not in (0, user.uid):
        os.close(directory)
        raise _refuse(user, ".ssh belongs to somebody else")
    if make and seen.st_mode & 0o022:
        os.fchmod(directory, 0o700)  # sshd takes no keys from where others may write
    return directory


def _refuse(user: "usertables.User", reason: str) -> "dispatch.CallError":
    return dispatch.CallError(dispatch.NOT_PERMITTED, "the keys of %s were left alone: %s" % (user.name, reason))


def _build_fingerprint(data: bytes) -> str:
    """The fingerprint as `ssh-keygen -l` shows it."""
    import binascii

    try:
        digest: bytes = __import__("_sha256").sha256(data).digest()  # `hashlib` would load OpenSSL
    except ImportError:
        digest = __import__("_sha2").sha256(data).digest()  # its name from Python 3.12 on
    return "SHA256:" + binascii.b2a_base64(digest, newline=False).decode("ascii").rstrip("=")
