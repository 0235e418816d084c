"""The Debian guest that many tests share: `from tests.debian.guest import debian_guest`.

It lives for the whole run, so a test leaves it as it found it. The sockets of its agent are `agent` and `bulk` in its
`directory`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian.debianvm import DISK, DebianVM


@pytest.fixture(scope="session")
def debian_guest() -> Iterator[DebianVM]:
    """A Debian guest whose agent has answered once; nobody is connected to it."""
    if not DISK.exists():
        pytest.skip("the Debian image is not built: make image-debian")
    # Short, because pytest's own directories can be longer than an AF_UNIX address may be.
    directory = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    with DebianVM(directory) as vm:
        vm.boot()
        vm.disconnect()
        yield vm
    shutil.rmtree(directory)
