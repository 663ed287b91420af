"""Signals that ask a run to stop: it saves first, and its exit code says that it is to be started again."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later
STOP = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers, before they kill
HEARD = (*STOP, signal.SIGINT)


class Stopped(SystemExit):
    """Asked to stop, and stopped: exit code 75."""

    def __init__(self):
        super().__init__(AGAIN)


class Signals:
    """Within, SIGTERM, SIGUSR1 and Ctrl-C end what has nothing to lose at once, and a loop at its next step's end.

    `caught` is the signal that asks the loop to stop. A second Ctrl-C does not wait for it.
    """

    def __init__(self):
        self.caught: signal.Signals | None = None
        self.looping, self.at = False, 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self.before = {number: signal.signal(number, self._hear) for number in HEARD}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame) -> None:
        again, self.caught = self.caught, signal.Signals(number)
        now, before = time.monotonic(), self.at
        self.at = now
        # A launcher sends its ranks once more what a terminal has sent to all.
        if not self.looping or (number == again == signal.SIGINT and now - before > 1):
            self.stop()
        if number == signal.SIGINT and again is None and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\ninterrupted: saving when this step is done; Ctrl-C again stops at once\n")

    def loop(self) -> None:
        """From now on there is something to save, and `caught` is looked at."""
        self.looping = True
        if self.caught:  # an exception in a destructor, say, is lost
            self.stop()

    def stop(self) -> None:
        raise KeyboardInterrupt if self.caught == signal.SIGINT else Stopped


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes that are started within never hear these signals: a group's or a terminal's reaches them, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
