"""The signals that ask a process to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def ignore() -> None:
    """Ignore the signals that ask to stop, in a process that is about to end.

    A launcher passes on the signal that Ctrl-C has sent to all processes already, and stops those
    that are left when one has failed: what they have to say would be lost.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def handling(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have `handle(number, frame)` called for the signals that ask to stop.

    A signal that the process ignores stays ignored, as SIGHUP under nohup. In a thread other than
    the main one nothing changes, since it receives no signals.
    """
    main = threading.current_thread() is threading.main_thread()
    previous = {
        number: signal.signal(number, handle)
        for number in (STOPPING if main else ())
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
