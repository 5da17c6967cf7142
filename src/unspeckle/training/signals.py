"""Ctrl-C and SIGTERM while training: the first stops at a clean point, the second at once."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether the person (Ctrl-C) or the system (SIGTERM) has asked to stop. A second
    signal raises KeyboardInterrupt. At the end, the handlers are as they were before."""
    signals: list[int] = []

    def handle_signal(signal_number: int, _: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(signal_number)
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    handlers = {}
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread can set them; a program that calls from another one stops us by other means.
        with suppress(ValueError):
            handlers[signal_number] = signal.signal(signal_number, handle_signal)
    try:
        yield lambda: bool(signals)
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
