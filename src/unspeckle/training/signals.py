"""Ctrl-C and SIGTERM while training: stop at a clean point, or at once the second time."""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


def stop_on_signal() -> Callable[[], bool]:
    """From now on, a function that tells whether the person (Ctrl-C) or the system (SIGTERM) has asked to stop. The
    second signal raises KeyboardInterrupt."""
    signals: list[int] = []

    def handle_signal(signal_number: int, _: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(signal_number)
        print("\nstopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread can set them; a program that calls from another one stops us by other means.
        with suppress(ValueError):
            signal.signal(signal_number, handle_signal)
    return lambda: bool(signals)
