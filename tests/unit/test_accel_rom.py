"""The bytes in `control/accel/rom.py` are what `probe.S` says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from control.accel import rom

SOURCE = Path(rom.__file__).with_name("probe.S")


def assemble(source: Path, directory: Path) -> bytes:
    for argv in (
        ["as", "--64", "-o", "probe.o", str(source)],
        ["ld", "-m", "elf_x86_64", "-Ttext=0xf0000", "-e", "0xffff0", "-o", "probe.elf", "probe.o"],
        ["objcopy", "-O", "binary", "-j", ".text", "probe.elf", "probe.bin"],
    ):
        subprocess.run(argv, cwd=directory, check=True)
    return (directory / "probe.bin").read_bytes()


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("as", "ld", "objcopy")),
    reason="binutils is not installed: apt-get install binutils",
)
def test_the_committed_bytes_are_the_assembled_source(tmp_path: Path) -> None:
    assembled = assemble(SOURCE, tmp_path)
    code = assembled[-1024:]
    lines = "\n".join(code[start : start + 48].hex() for start in range(0, len(code), 48))
    assert assembled == rom.build_image(), f"probe.S was changed; its code is now:\n{lines}"


def test_the_image_has_the_size_qemu_maps() -> None:
    assert len(rom.build_image()) == rom.SIZE_BYTES


def test_every_step_in_the_source_has_words_and_every_word_its_step() -> None:
    announced = set(re.findall(r"^\s+step\s+'(.)'", SOURCE.read_text(encoding="ascii"), flags=re.MULTILINE))
    assert announced == set(rom.STEPS)


def test_the_exit_codes_are_those_of_the_source() -> None:
    values = dict(re.findall(r"\.set (EXIT_\w+), (0x\w+)", SOURCE.read_text(encoding="ascii")))
    codes = {name: int(value, 16) << 1 | 1 for name, value in values.items() if name != "EXIT_PORT"}
    assert codes == {
        "EXIT_WORKED": rom.WORKED,
        "EXIT_EXCEPTION": rom.UNEXPECTED_EXCEPTION,
        "EXIT_WRONG": rom.WRONG_RESULT,
    }
    assert int(values["EXIT_PORT"], 16) == rom.EXIT_PORT
