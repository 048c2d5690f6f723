"""Ctrl-C, SIGTERM and SIGHUP, heard without stopping in the middle of something."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_last = signal.SIGINT


class Interrupted(KeyboardInterrupt):
    """A signal came; everything is saved. Not an Exception: it ends a whole sweep."""

    def __init__(self, *said: object):
        super().__init__(*said)
        self.code = 128 + _last  # what a shell says of a process that the signal has ended


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that is empty until a signal to stop arrives; a second one acts as usual."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def receive(number: int, frame: Any) -> None:
        global _last
        _last = number
        received.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)
        print("\nstopping after this step; once more to stop at once", flush=True)

    try:
        for number in (signal.SIGINT, signal.SIGTERM, *_hangup()):
            before[number] = signal.signal(number, receive)
    except ValueError:  # not the main thread: signals are somebody else's business
        before.clear()
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hangup() -> list[int]:
    """SIGHUP, where there is one and nobody (nohup) has said to go on without a terminal."""
    hangup = getattr(signal, "SIGHUP", None)
    return [] if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN else [hangup]
