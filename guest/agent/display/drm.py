"""Draws through the kernel's mode setting: one buffer, one screen (guest floor); used by `screen`.

Plain memory buffers ("dumb buffers") are what every driver has. Source of all numbers and layouts: Linux,
include/uapi/drm/drm.h and drm_mode.h; drm-memory(7).
"""

import fcntl
import mmap
import os
import struct
from array import array

_CONNECTED = 1
_MODE_BYTES = 68


def _request(number: int, size: int) -> int:
    return 0xC0000000 | size << 16 | ord("d") << 8 | number  # _IOWR('d', number, size)


_SET_MASTER = 0x0000641E
_GET_RESOURCES = _request(0xA0, 64)
_GET_CRTC = _request(0xA1, 104)
_SET_CRTC = _request(0xA2, 104)
_GET_ENCODER = _request(0xA6, 20)
_GET_CONNECTOR = _request(0xA7, 80)
_ADD_FB = _request(0xAE, 28)
_RM_FB = _request(0xAF, 4)
_DIRTY_FB = _request(0xB1, 24)
_CREATE_DUMB = _request(0xB2, 32)
_MAP_DUMB = _request(0xB3, 16)
_DESTROY_DUMB = _request(0xB4, 4)


class NoScreen(Exception):
    """There is no screen that can be drawn on; the text says why."""


class Card:
    """A graphics card with one screen, ours until `close`; the kernel's console gets it back then.

    Raises:
        NoScreen: No screen is connected, or another program has the card.
        OSError: The device cannot be opened or does not do mode setting.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map: "mmap.mmap | None" = None
        self._fb = 0
        self._handle = 0
        try:
            self._take()
            self._find_screen()
        except BaseException:
            os.close(self._fd)
            raise
        self.width = 0
        self.height = 0
        self.pitch = 0

    def list_modes(self) -> "list[tuple[int, int]]":
        """The sizes this screen can have, its preferred one first."""
        return [_size(mode) for mode in self._modes]

    def find_current_size(self) -> "tuple[int, int] | None":
        """The size the screen has now; None while it shows nothing."""
        crtc = bytearray(104)
        struct.pack_into("=I", crtc, 12, self._crtc)
        fcntl.ioctl(self._fd, _GET_CRTC, crtc)
        valid = struct.unpack_from("=I", crtc, 32)[0]
        return _size(bytes(crtc[36:])) if valid else None

    def set_mode(self, width: int, height: int) -> bool:
        """Shows a black picture of this size; False when the screen has no such mode, and nothing has changed.

        Raises:
            OSError: The driver refused; the screen shows what it showed before.
        """
        mode = next((mode for mode in self._modes if _size(mode) == (width, height)), None)
        if mode is None:
            return False
        old_map, old_fb, old_handle = self._map, self._fb, self._handle
        map_, fb, handle, pitch = self._make_buffer(width, height)
        connector = array("I", [self._connector])
        # drm_mode_crtc: connectors, count, crtc, fb, x, y, gamma size, mode valid, mode
        request = struct.pack("=Q7I", connector.buffer_info()[0], 1, self._crtc, fb, 0, 0, 0, 1) + mode
        try:
            fcntl.ioctl(self._fd, _SET_CRTC, request)
        except OSError:
            self._drop_buffer(map_, fb, handle)
            raise
        self._map, self._fb, self._handle = map_, fb, handle
        self.width, self.height, self.pitch = width, height, pitch
        self._drop_buffer(old_map, old_fb, old_handle)
        return True

    def write_row(self, x: int, y: int, pixels: bytes) -> None:
        """Puts a row of 4-byte pixels (blue, green, red, unused) at `x`, `y`; it must fit."""
        at = y * self.pitch + x * 4
        if self._map is not None:
            self._map[at : at + len(pixels)] = pixels

    def clear(self) -> None:
        row = bytes(self.width * 4)
        for y in range(self.height):
            self.write_row(0, y, row)

    def flush(self) -> None:
        """Tells a driver that copies its picture that there is a new one."""
        try:
            fcntl.ioctl(self._fd, _DIRTY_FB, struct.pack("=4IQ", self._fb, 0, 0, 0, 0))
        except OSError as error:
            if error.errno not in (22, 25, 38, 95):  # EINVAL, ENOTTY, ENOSYS, EOPNOTSUPP: this driver copies nothing
                raise

    def close(self) -> None:
        """Gives the screen back to the kernel's console."""
        self._drop_buffer(self._map, self._fb, self._handle)
        os.close(self._fd)

    def _take(self) -> None:
        try:
            fcntl.ioctl(self._fd, _SET_MASTER, 0)
        except OSError as error:
            raise NoScreen("another program of the guest has the screen (%s)" % error.strerror) from None

    def _find_screen(self) -> None:
        for connector in self._list_connectors():
            found = self._look_at(connector)
            if found is not None:
                self._connector = connector
                self._modes, self._crtc = found
                return
        raise NoScreen("no screen is connected to the graphics card")

    def _list_connectors(self) -> "list[int]":
        # drm_mode_card_res: four pointers (fbs, crtcs, connectors, encoders), four counts, size limits.
        answer = bytearray(64)
        fcntl.ioctl(self._fd, _GET_RESOURCES, answer)
        counts = struct.unpack_from("=4I", answer, 32)
        lists = [array("I", bytes(4 * max(count, 1))) for count in counts]
        answer = bytearray(struct.pack("=4Q4I", *(part.buffer_info()[0] for part in lists), *counts)) + bytearray(16)
        fcntl.ioctl(self._fd, _GET_RESOURCES, answer)
        self._crtcs = list(lists[1][: counts[1]])
        return list(lists[2][: counts[2]])

    def _look_at(self, connector: int) -> "tuple[list[bytes], int] | None":
        # drm_mode_get_connector: pointers (encoders, modes, props, values), counts (modes, props, encoders), encoder,
        # connector, type, type id, connection, …
        answer = bytearray(80)
        struct.pack_into("=I", answer, 48, connector)
        fcntl.ioctl(self._fd, _GET_CONNECTOR, answer)
        mode_count, prop_count, encoder_count = struct.unpack_from("=3I", answer, 32)
        modes = array("B", bytes(_MODE_BYTES * max(mode_count, 1)))
        props = array("I", bytes(4 * max(prop_count, 1)))
        values = array("Q", bytes(8 * max(prop_count, 1)))
        encoders = array("I", bytes(4 * max(encoder_count, 1)))
        answer = bytearray(80)
        pointers = [part.buffer_info()[0] for part in (encoders, modes, props, values)]
        struct.pack_into("=4Q3I", answer, 0, *pointers, mode_count, prop_count, encoder_count)
        struct.pack_into("=I", answer, 48, connector)
        fcntl.ioctl(self._fd, _GET_CONNECTOR, answer)
        found = min(mode_count, struct.unpack_from("=I", answer, 32)[0])
        connection = struct.unpack_from("=I", answer, 60)[0]
        if connection != _CONNECTED or not found:
            return None
        data = modes.tobytes()
        list_ = [data[at : at + _MODE_BYTES] for at in range(0, found * _MODE_BYTES, _MODE_BYTES)]
        crtc = self._find_crtc(list(encoders[:encoder_count]))
        return None if crtc is None else (list_, crtc)

    def _find_crtc(self, encoders: "list[int]") -> "int | None":
        for encoder in encoders:
            answer = bytearray(struct.pack("=5I", encoder, 0, 0, 0, 0))
            fcntl.ioctl(self._fd, _GET_ENCODER, answer)
            current, possible = struct.unpack_from("=2I", answer, 8)
            if current:
                return int(current)
            for index, crtc in enumerate(self._crtcs):
                if possible & 1 << index:
                    return crtc
        return None

    def _make_buffer(self, width: int, height: int) -> "tuple[mmap.mmap, int, int, int]":
        dumb = bytearray(struct.pack("=6IQ", height, width, 32, 0, 0, 0, 0))
        fcntl.ioctl(self._fd, _CREATE_DUMB, dumb)
        handle, pitch, size = struct.unpack_from("=2IQ", dumb, 16)
        fb = 0
        try:
            added = bytearray(struct.pack("=7I", 0, width, height, pitch, 32, 24, handle))
            fcntl.ioctl(self._fd, _ADD_FB, added)
            fb = struct.unpack_from("=I", added, 0)[0]
            place = bytearray(struct.pack("=2IQ", handle, 0, 0))
            fcntl.ioctl(self._fd, _MAP_DUMB, place)
            offset = struct.unpack_from("=Q", place, 8)[0]
            map_ = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
        except BaseException:
            self._drop_buffer(None, fb, handle)
            raise
        return map_, fb, handle, pitch

    def _drop_buffer(self, map_: "mmap.mmap | None", fb: int, handle: int) -> None:
        if map_ is not None:
            map_.close()
        if fb:
            fcntl.ioctl(self._fd, _RM_FB, bytearray(struct.pack("=I", fb)))
        if handle:
            fcntl.ioctl(self._fd, _DESTROY_DUMB, bytearray(struct.pack("=I", handle)))


def _size(mode: bytes) -> "tuple[int, int]":
    # drm_mode_modeinfo: clock (u32), hdisplay, hsync start, hsync end, htotal, hskew, vdisplay, … (u16)
    width, height = struct.unpack_from("=4xH8xH", mode)
    return width, height
