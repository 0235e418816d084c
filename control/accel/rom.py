"""The firmware image that proves an accelerator, as bytes (floor 2; `kvm.py` runs it).

The source is `probe.S` beside this file. The bytes are kept here so that no assembler is needed to run it;
`tests/unit/test_accel_rom.py` assembles the source again and compares, and prints the new bytes when they differ.
"""

from __future__ import annotations

SIZE_BYTES = 64 * 1024
"""The whole image: QEMU maps the last 64 KiB of a firmware image below 1 MiB too, and asks for a multiple of it.

Source: QEMU 7.2, hw/i386/x86.c, x86_bios_rom_init: "bios_size % 65536 != 0" is an error.
"""

PROGRESS_PORT = 0x402
EXIT_PORT = 0xF4

WORKED = 85
UNEXPECTED_EXCEPTION = 97
WRONG_RESULT = 99
"""What QEMU exits with when the image writes to the exit port: `value << 1 | 1`.

QEMU itself exits with 0, 1 or a signal, so these cannot be mistaken.
Source: QEMU 7.2, hw/misc/debugexit.c, debug_exit_write.
"""

STEPS = {
    "R": "its start in real mode",
    "P": "the switch to protected mode",
    "L": "the switch to long mode",
    "C": "cpuid",
    "F": "fxsave and fxrstor",
    "X": "xsave and xrstor",
    "K": "cmpxchg16b",
    "B": "a breakpoint exception",
    "W": "a page fault",
    "S": "a loop of ten million instructions",
    ".": "its very last instruction",
}
"""The letters the image writes to the progress port, each just before the step it names."""

_CODE = bytes.fromhex(
    """
0000000000000000ffff0000009bcf00ffff00000093cf00ffff0000009baf001f0000fc0f00ff0f0040010000000000
fafcba0204b052ee31c08ed066bc007c0000669c666800f00000666852fc000066cfba0204b050ee2e660f011620fc0f
20c06625ffffff9f0c010f22c066ea75fc0f000800b8100000008ed88ec08ed08ee08ee8bc000008009c6a086892fc0f
00cf66ba0204b04ceeb8010000800fa20fbae21d737cbf0000010031c0b900100000f3abc7050000010003100100c705
0010010003200100c7050020010003300100bf00300100b803000000b9000200008907050010000083c708e2f4b80000
01000f22d80f20e00d200600000f22e0b9800000c00f320fbae8080f300f20c083e0fb0d020001800f22c0ea2cfd0f00
1800b831000000e7f4f4ebfdbf00400100b90001000048c7c0d8fe0f00e8c3010000e2f2bf3040010048c7c0e2fe0f00
e8b0010000bfe040010048c7c0e7fe0f00e89f0100000f011c2526fc0f0066ba0204b043ee31c00fa285c00f844d0100
00b80100000031c90fa24189cc66ba0204b046eebf0050010048b8efcdab896745230166480f6ec8480fae07660fefc9
480fae0f66480f7ecb4839c30f850c010000410fbae41a735766ba0204b058ee0f20e0480fbae8120f22e031c90f01d0
83c8030f01d1bf0050010031c0b900020000f348abbf00500100b80300000031d266480f6ecb480fae27660fefc9480f
ae2f66480f7ec94839d90f85ae000000410fbae40d733d66ba0204b04beebf0050010048c7070700000048c747080800
0000b807000000ba08000000bb09000000b90a000000f0480fc70f757148837f080a756a66ba0204b042ee4531edcc41
83fd01755966ba0204b057ee4531f680242500310100fe0f013c2500000200c7042500000200ed5e00004183fe01752e
813c2500000200ed5e0000752166ba0204b053eeb9404b4c00ffc975fc66ba0204b02eeeb82a000000e7f4f4ebfdb831
000000e7f4f4ebfdb830000000e7f4f4ebfd41ffc548cf410f20d74981ff0000020075e441ffc6800c25003101000148
83c40848cf66890766c74702180066c74704008e48c1e8104889470666c7470e00004883c710c3f4f4f4f4f4f4f4f4f4
f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4
f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4
f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4
f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4
ea30fc00f0f4f4f4f4f4f4f4f4f4f4f4
"""
)


def build_image() -> bytes:
    """Return the firmware image: `hlt` up to the code, which ends with the reset vector."""
    return bytes([0xF4]) * (SIZE_BYTES - len(_CODE)) + _CODE
