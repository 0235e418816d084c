"""What the guest shows on its screen (floor 3): a picture, or the exact text of a screen in text mode."""

from __future__ import annotations

from pathlib import Path

from control.errors import MonitorError, WaitTimeout
from control.monitor import Monitor
from control.paths import InstanceFiles

TEXT_MEMORY = 0xB8000
TEXT_COLUMNS, TEXT_ROWS = 80, 25
"""Where a VGA card in colour text mode keeps its characters: two bytes each, character and attribute."""

TEXT_MEMORY_BYTES = 32 * 1024
CRTC_INDEX, CRTC_DATA = 0x3D4, 0x3D5
CRTC_START_HIGH, CRTC_START_LOW = 0x0C, 0x0D
"""Registers that say, in characters, where in that memory the screen begins: Linux scrolls by moving it
(IBM VGA, "Start Address"; Linux, drivers/video/console/vgacon.c, vga_set_mem_top)."""


VBE_INDEX, VBE_DATA, VBE_ENABLE = 0x1CE, 0x1CF, 4
GRAPHICS_INDEX, GRAPHICS_DATA, GRAPHICS_MISC = 0x3CE, 0x3CF, 6


async def save_screenshot(monitor: Monitor, path: Path) -> None:
    """Write the guest's screen to `path` as PNG, or as PPM for a name that ends in `.ppm`.

    Raises:
        MonitorError: The VM has no screen, or QEMU cannot write there.
    """
    form = "ppm" if path.suffix == ".ppm" else "png"
    await monitor.execute("screendump", {"filename": str(path.absolute()), "format": form})


async def is_text_mode(monitor: Monitor) -> bool:
    """Whether the guest's VGA card shows characters; False without a card, and for one that does not say.

    Source: IBM VGA, Graphics Controller register 6, bit 0 (graphics); QEMU sources, hw/display/vga.c: the Bochs
    extension, register 4 of ports 0x1CE and 0x1CF, bit 0 (enabled), goes before it.
    """
    try:
        await monitor.human(f"o /h {VBE_INDEX:#x} {VBE_ENABLE:#x}")
        vbe = _read_port(await monitor.human(f"i /h {VBE_DATA:#x}"))
        await monitor.human(f"o /b {GRAPHICS_INDEX:#x} {GRAPHICS_MISC:#x}")
        misc = _read_port(await monitor.human(f"i /b {GRAPHICS_DATA:#x}"))
    except (MonitorError, WaitTimeout):
        return False
    if misc is None or misc == 0xFF:  # what no device answers reads as ones
        return False
    return misc & 1 == 0 and (vbe in (None, 0xFFFF) or vbe & 1 == 0)


def _read_port(text: str) -> int | None:
    """The value in `portb[0x03d5] = 0x07`."""
    words = text.split()
    try:
        return int(words[-1], 16)
    except (IndexError, ValueError):
        return None


async def read_text_screen(monitor: Monitor, files: InstanceFiles) -> tuple[str, ...]:
    """Read the lines of a screen in text mode, blank ones left out; empty when there is no such text.

    Works while the guest runs, and after it died. In a graphics mode the memory holds no sensible text.
    """
    dump = files.directory / ".text-screen"
    size = TEXT_COLUMNS * TEXT_ROWS * 2
    try:
        begin = 2 * await _read_screen_start(monitor)
        if begin + size > TEXT_MEMORY_BYTES:
            begin = 0
        await monitor.execute("pmemsave", {"val": TEXT_MEMORY + begin, "size": size, "filename": str(dump.absolute())})
        cells = dump.read_bytes()
    except (MonitorError, WaitTimeout, OSError):
        return ()  # evidence is welcome, not owed: the error it was meant for is reported without it
    finally:
        dump.unlink(missing_ok=True)
    rows = (cells[row * TEXT_COLUMNS * 2 : (row + 1) * TEXT_COLUMNS * 2 : 2] for row in range(TEXT_ROWS))
    lines = [row.replace(b"\0", b" ").decode("cp437").rstrip() for row in rows]
    return tuple(line for line in lines if line and line.isprintable())


async def _read_screen_start(monitor: Monitor) -> int:
    """Where the screen begins in the text memory, in characters; 0 when the card does not say."""
    values = []
    for register in (CRTC_START_HIGH, CRTC_START_LOW):
        await monitor.human(f"o /b {CRTC_INDEX:#x} {register:#x}")
        value = _read_port(await monitor.human(f"i /b {CRTC_DATA:#x}"))
        if value is None:
            return 0
        values.append(value)
    return values[0] << 8 | values[1]
