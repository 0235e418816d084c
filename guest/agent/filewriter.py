"""Writes one file from plain bytes (guest floor); made by `file_write`, for text in the call and for a stream alike."""

import os
from zlib import crc32

from . import files
from .flows import Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .pathpolicy import Place


class FileWriter(Sink):
    """The bytes of a stream as a file.

    A whole file is written under a hidden name first. With `append` or `offset` the file is written where it is.

    Args:
        place: The file; closed at the end.
        params: Those of `file_write`.
        limit: How many bytes the file may have; 0 for no limit.
    """

    def __init__(self, place: "Place", params: "dict[str, Any]", limit: int) -> None:
        Sink.__init__(self)
        self._place = place
        self._params = params
        self._limit = limit
        self._crc = 0
        self._bytes = 0

    def run(self) -> "Generator[Any, Any, dict[str, Any]]":
        params = self._params
        try:
            if params.get("append") or "offset" in params:
                size = yield from self._write_in_place()
            else:
                size = yield from self._write_anew()
            return {"bytes": self._bytes, "size": size, "crc32": self._crc}
        finally:
            self._place.close()

    def _write_in_place(self) -> "Generator[Any, Any, int]":
        params = self._params
        flags = os.O_WRONLY | (os.O_APPEND if params.get("append") else 0)
        exclusive = params.get("exclusive", False)
        new = exclusive or (params.get("create", True) and self._place.find_stat() is None)
        try:
            fd = self._place.open_file(flags | os.O_CREAT | os.O_EXCL if new else flags)
        except FileExistsError:
            if exclusive:
                raise
            new = False  # it has come meanwhile, so its mode is not for us to change
            fd = self._place.open_file(flags)
        try:
            if new or "mode" in params:
                os.fchmod(fd, params.get("mode", 0o644))
            yield from self._take(fd, os.fstat(fd).st_size if params.get("append") else params["offset"])
            if params.get("durable"):
                yield files.NeedSync(fd)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _write_anew(self) -> "Generator[Any, Any, int]":
        params = self._params
        self._place.check()
        hidden = files.Hidden(self._place.dir_fd, self._place.name)
        before = hidden.before
        if before is None and not params.get("create", True):
            raise FileNotFoundError(2, os.strerror(2))
        if before is not None and params.get("exclusive"):
            raise FileExistsError(17, os.strerror(17))
        try:
            fd = hidden.open()
            yield from self._take(fd, 0)
            mode = 0o644
            if before is not None:
                mode = before.st_mode & 0o7777
                files.keep_owner(fd, before)
            os.fchmod(fd, params.get("mode", mode))
            if params.get("durable"):
                yield files.NeedSync(fd)
            hidden.commit(params.get("exclusive", False))
            if params.get("durable"):
                yield from files.sync_directory(self._place.dir_fd)
            return self._bytes
        finally:
            hidden.discard()

    def _take(self, fd: int, offset: int) -> "Generator[Any, Any, None]":
        """Writes everything up to the end of the stream, from `offset` on; a file that appends finds its own end."""
        while True:
            try:
                while not self.view:
                    yield
            except EOFError:
                return
            piece = self.view
            if self._limit and offset + len(piece) > self._limit:
                raise files.TooLarge("more than transfer_bytes of the agent's configuration")
            self._crc = crc32(piece, self._crc)
            files.write_all(fd, piece, offset)
            offset += len(piece)
            self._bytes += len(piece)
            self.view = piece[len(piece) :]
