"""What QEMU's options do: every option of the real QEMU has its sentence, and command lines fall into their options."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from control.argv import build_argv
from control.paths import InstanceFiles
from control.spec.qemu_options import DEVICES, FLAGS, OPTIONS, explain
from control.spec.vm_spec import DirectBoot, Disk, Share, VMSpec


def test_every_option_of_qemu_has_its_sentence(need: Callable[[str], None]) -> None:
    need("qemu")
    text = subprocess.run(
        ["qemu-system-x86_64", "-help"], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    flags: set[str] = set()
    options: set[str] = set()
    for line in text.splitlines():
        if not line.startswith("-"):
            continue
        words = re.split(r"\s{2,}|\t", line.split(" or ")[-1] if line.startswith("-h ") else line)[0]
        for name in re.findall(r"(?:^|/)--?([A-Za-z0-9_-]+)", words):
            (options if re.search(r"[\s\[]\S", words.removeprefix("-")) else flags).add(name)
    assert {name for name in flags | options if name not in FLAGS and name not in OPTIONS} == set()
    # "-h or -help", and one whose explanation follows after a single space.
    assert {name for name in options if name in FLAGS} <= {"h", "async-teardown"}
    # Two whose value stands far behind them.
    assert {name for name in flags if name not in FLAGS} <= {"k", "dtb"}
    assert set(FLAGS) & set(OPTIONS) == set()


def test_the_command_line_we_build_is_explained_in_full(tmp_path: Path) -> None:
    spec = VMSpec(
        name="web",
        boot=DirectBoot(Path("/k"), Path("/i"), "quiet"),
        accelerator="tcg",
        disks=(Disk(Path("/d"), "qcow2"),),
        share=Share(tmp_path),
    )
    argv = build_argv(spec, InstanceFiles(tmp_path, tmp_path))
    found = explain([("unhinged", argv[1:])])
    assert all(part.is_known and part.option for part in found), [part for part in found if not part.is_known]
    assert [word for part in found for word in (part.option, part.value) if word] == list(argv[1:])
    drivers = [part for part in found if part.option == "-device"]
    assert all("Here: " in part.meaning for part in drivers), [part.value for part in drivers]
    assert len(DEVICES) > 20


def test_each_option_says_where_it_is_from() -> None:
    found = explain(
        [
            ("cmd", ["-m", "4096", "--nodefaults", "-new-thing", "a,b", "-other", "-smp"]),
            (
                "qemu_args",
                ["2", "disk.img", "-device", '{"driver": "virtio-rng-pci"}', "-netdev", "user,id=n", "-append"],
            ),
        ]
    )
    assert [(part.option, part.value, part.origin, part.is_known) for part in found] == [
        ("-m", "4096", "cmd", True),
        ("--nodefaults", "", "cmd", True),
        ("-new-thing", "a,b", "cmd", False),
        ("-other", "", "cmd", False),
        ("-smp", "2", "cmd", True),
        ("", "disk.img", "qemu_args", True),
        ("-device", '{"driver": "virtio-rng-pci"}', "qemu_args", True),
        ("-netdev", "user,id=n", "qemu_args", True),
        ("-append", "", "qemu_args", True),
    ]
    assert "random numbers" in found[6].meaning
    assert "needs no rights" in found[7].meaning


def test_sentences_are_sentences() -> None:
    for meaning in (*FLAGS.values(), *OPTIONS.values()):
        assert meaning[0].isupper()
        assert meaning.endswith(".")


@given(st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["-m", "-S", "-device", "--", "-", '{"driver": [']))))
def test_any_words_are_explained_and_none_is_lost(words: list[str]) -> None:
    found = explain([("here", words)])
    assert [word for part in found for word in (part.option, part.value) if word] == [word for word in words if word]
