"""What the boot tests share beside their launches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.boot.launching import ROOT, find_processes_below


@pytest.fixture
def checkout_instance() -> Iterator[str]:
    """The name of an instance of the checkout itself, for what goes through make; removed afterwards."""
    name = f"boot-test-{os.getpid()}"
    directory = ROOT / ".unhinged" / f"vm.{name}"
    yield name
    left = find_processes_below(directory)
    shutil.rmtree(directory, ignore_errors=True)
    assert not left, left
