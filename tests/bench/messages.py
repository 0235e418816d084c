"""How many messages a second are told from the text, checked and noted: what of the console is our own work."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from control.console.scanner import Candidate, MessageScanner
from control.launch.session import View
from control.vm.journal import open_journal
from control.vm.listener import Carrier
from control.vm.traffic import Traffic
from control.wire import Message, encode_message, parse_message
from tests.bench.figures import Figure, Samples, Target
from tests.bench.payload import MESSAGE
from tests.bench.registry import Settings, benchmark

COUNT = 50_000
QUICK_COUNT = 5_000
CHUNK_BYTES = 64 * 1024


class Counter(View):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.messages = 0
        self.text_bytes = 0

    async def on_text(self, text: bytes) -> None:
        self.text_bytes += len(text)

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        self.messages += 1


@benchmark("messages")
def measure_messages(settings: Settings) -> list[Figure]:
    """Messages a second through scanner, schema and journal, beside parsing the same JSON and nothing else."""
    count = QUICK_COUNT if settings.quick else COUNT
    lines = [(MESSAGE % (0, index)).encode() for index in range(count)]
    stream = b"".join(lines)
    ours: list[float] = []
    bare: list[float] = []
    for number in range(settings.runs):
        settings.say(f"messages: round {number + 1} of {settings.runs}")
        ours.append(count / asyncio.run(_take(stream, count, settings.directory / "messages.jsonl")))
        started = time.perf_counter()
        for line in lines:
            json.loads(line)
        bare.append(count / (time.perf_counter() - started))
    return [
        Figure(
            f"{count} messages of {len(lines[-1])} bytes",
            "1/s",
            Samples("scanned, checked, noted, passed on", tuple(ours)),
            Samples("json.loads", tuple(bare)),
            (Target(20_000, "higher"),),
            (f"of the time for one message, by itself: {_describe_steps(lines, stream)}.",),
        )
    ]


async def _take(stream: bytes, count: int, journal_path: Path) -> float:
    """Feed the stream as the console's pump does; return the seconds it took."""
    view = Counter()
    with open_journal(journal_path, fresh=True) as journal:
        traffic = Traffic(journal, view, lambda message: None)
        started = time.perf_counter()
        for begin in range(0, len(stream), CHUNK_BYTES):
            await traffic.take_console(stream[begin : begin + CHUNK_BYTES])
        seconds = time.perf_counter() - started
        await traffic.end_console()
    if (view.messages, view.text_bytes) != (count, 0):
        raise RuntimeError(f"of {count} messages {view.messages} came, and {view.text_bytes} bytes of text")
    return seconds


def _describe_steps(lines: list[bytes], stream: bytes) -> str:
    started = time.perf_counter()
    scanner = MessageScanner()
    found = sum(
        isinstance(piece, Candidate)
        for begin in range(0, len(stream), CHUNK_BYTES)
        for piece in scanner.feed(stream[begin : begin + CHUNK_BYTES])
    )
    scanned = time.perf_counter()
    messages = [parse_message(line) for line in lines]
    parsed = time.perf_counter()
    written = sum(len(encode_message(message)) for message in messages)
    encoded = time.perf_counter()
    if found != len(lines) or not written:
        raise RuntimeError(f"of {len(lines)} messages {found} were found")
    steps = {"scanner": scanned - started, "JSON and schema": parsed - scanned, "encoding": encoded - parsed}
    return ", ".join(f"{name} {seconds / len(lines) * 1e6:.1f} µs" for name, seconds in steps.items())
