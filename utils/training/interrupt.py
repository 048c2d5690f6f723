"""Ctrl-C and SIGTERM, heard without stopping in the middle of something."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; everything is saved. Not an Exception: it ends a whole sweep."""


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM arrives; a second signal acts as usual."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)
        print("\nstopping after this step; once more to stop at once", flush=True)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, receive)
    except ValueError:  # not the main thread: signals are somebody else's business
        before.clear()
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
