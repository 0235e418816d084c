"""The launchers as classes, as a program uses them; what they do with a VM is the boot tier's business."""

from __future__ import annotations

import pytest

from control.enhanced_vm_launcher import EnhancedVMLauncher
from control.errors import StateError
from control.simple_vm_launcher import SimpleVMLauncher
from control.unhinged_launcher import UnhingedLauncher

LINE = '{"timestamp":"2026-01-01T00:00:00Z","direction":"%s","type":"status","data":{"message":"up","details":{}}}\n'


def test_each_launcher_extends_the_one_before() -> None:
    assert issubclass(EnhancedVMLauncher, SimpleVMLauncher)
    assert issubclass(UnhingedLauncher, EnhancedVMLauncher)


def test_a_line_of_the_console_is_a_message_or_text() -> None:
    launcher = EnhancedVMLauncher()
    message = launcher.process_vm_output(LINE % "vm-to-host")
    assert message is not None
    assert (message.type, message.text) == ("status", "up")
    assert launcher.process_vm_output(LINE % "host-to-vm") is None
    assert launcher.process_vm_output("unhinged login: ") is None


def test_nothing_can_be_sent_before_there_is_a_vm() -> None:
    with pytest.raises(StateError, match="no VM is running"):
        EnhancedVMLauncher().send_to_vm("info status")
