"""The guest's clocks (guest floor): the system's, and the one that the machine keeps for it (RTC).

Source: rtc(4); Linux, include/uapi/linux/rtc.h.
"""

import os
import time

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RTC = "/dev/rtc0"
_RTC_RD_TIME, _RTC_SET_TIME = 0x80247009, 0x4024700A
_FIELDS = 9  # struct rtc_time: second, minute, hour, day, month from 0, year from 1900, and three that are not used
_ZONES = "/usr/share/zoneinfo"


def read_timezone() -> str:
    """The name of the time zone, `UTC` where none is set. Source: localtime(5)."""
    try:
        _, found, name = os.readlink("/etc/localtime").partition("/zoneinfo/")
    except OSError:
        found = name = ""
    return (name if found else system.read_text("/etc/timezone", 256).strip())[:255] or "UTC"


def read_offset_s() -> int:
    """Local time minus UTC, in seconds, by the zone as it is set now."""
    time.tzset()
    return time.localtime().tm_gmtoff


def set_timezone(name: str) -> None:
    """Sets the system's zone, for good.

    Raises:
        FileNotFoundError: The guest knows no such zone; nothing has changed.
    """
    zone = "%s/%s" % (_ZONES, name)
    if ".." in name.split("/") or not os.path.isfile(zone):
        raise FileNotFoundError(2, "there is no such time zone", name)
    link = "/etc/.localtime.unhinged"
    try:
        os.unlink(link)
    except FileNotFoundError:
        pass
    os.symlink(zone, link)
    os.replace(link, "/etc/localtime")
    if os.path.exists("/etc/timezone"):
        from . import textfile

        textfile.replace("/etc/timezone", name + "\n")


def has_rtc() -> bool:
    return os.path.exists(_RTC)


def set_time(time_ns: int) -> None:
    """Sets the system's clock, and the machine's where there is one. Raises OSError."""
    set_clock(time_ns)
    keep_time()


def set_clock(time_ns: int) -> None:
    """Sets the system's clock. Raises OSError."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)


def keep_time() -> None:
    """Sets the machine's clock by the system's, where there is one. Raises OSError."""
    if has_rtc():
        write_rtc(int(time.time()))


def read_rtc_s() -> int:
    """Seconds since 1970 by the machine's clock, taken to be in UTC."""
    fields = memoryview(bytearray(_FIELDS * 4)).cast("i")
    _with_rtc(lambda control, fd: control(fd, _RTC_RD_TIME, fields.obj, True))
    second, minute, hour, day, month, year = list(fields)[:6]
    return _count_seconds(year + 1900, month + 1, day) + hour * 3600 + minute * 60 + second


def write_rtc(seconds: int) -> None:
    moment = time.gmtime(seconds)
    fields = memoryview(bytearray(_FIELDS * 4)).cast("i")
    values = (moment.tm_sec, moment.tm_min, moment.tm_hour, moment.tm_mday, moment.tm_mon - 1, moment.tm_year - 1900)
    for index, value in enumerate(values):
        fields[index] = value
    _with_rtc(lambda control, fd: control(fd, _RTC_SET_TIME, bytes(fields)))


def _with_rtc(action: "Callable[..., object]") -> None:
    import fcntl

    fd = os.open(_RTC, os.O_RDONLY | os.O_CLOEXEC)
    try:
        action(fcntl.ioctl, fd)
    finally:
        os.close(fd)


def _count_seconds(year: int, month: int, day: int) -> int:
    """Seconds from 1970 to the beginning of a day of the Gregorian calendar."""
    # The year begins in March here, so that the leap day is its last.
    years = year - (month < 3)
    days = years * 365 + years // 4 - years // 100 + years // 400 + (153 * ((month + 9) % 12) + 2) // 5 + day
    return (days - 719469) * 86400
