"""What is printed never stops a run: neither a closed pipe nor a full disk behind `>`."""

import os
import sys
from typing import Any

from utils.training import distributed


class Steady:
    """A stream whose first failure is its last: from then on it leads nowhere.

    It writes whole lines: jobs side by side share an output, and `print` alone would write a line
    and its end one after the other.
    """

    def __init__(self, stream: Any):
        self._stream, self._begun = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._begun += text
        if text.endswith("\n"):
            self.flush()
        return len(text)

    def flush(self) -> None:
        begun, self._begun = self._begun, ""
        try:
            self._stream.write(begun)
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """What is still buffered goes nowhere too, or Python would fail on it in the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def steady() -> None:
    """Make this process's output steady, and able to print any name."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Steady):
            continue
        if stream is None:  # it was closed by who started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            continue
        if hasattr(stream, "reconfigure"):  # a locale without "é" is no reason to stop either
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Steady(stream))


def say(sentence: str, code: int) -> int:
    """On stderr, once for all processes of a training; the exit code."""
    if distributed.is_first_to_end():
        print(f"error: {sentence}" if code == 1 else sentence, file=sys.stderr, flush=True)
    return code
