"""When a long loop saves: by steps, by time, and before it ends by Ctrl-C, SIGTERM or a closed terminal."""

import signal
import threading
import time
from types import FrameType, TracebackType

LONGEST = 120.0
"""Seconds of work that an interruption may cost, at most about that."""
# Windows has no SIGHUP, which a closed terminal or connection sends.
_ASKING = (signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)]))


class SavePoints:
    """Decides after each step whether a loop saves; a context manager around the loop.

    In one process a save is also due two minutes after the last one, and when Ctrl-C, SIGTERM or SIGHUP asks the loop
    to end: it finishes its step, saves, and ends as it would have ended. A second signal ends it at once. Several
    processes save by steps alone, on which they agree without asking each other.

    Args:
        every: Steps between two saves.
        alone: Whether there is one process.
    """

    def __init__(self, every: int, alone: bool) -> None:
        self.every, self.alone = every, alone
        self._asked: int | None = None
        self._before: dict[int, object] = {}
        self._last = time.monotonic()

    def __enter__(self) -> "SavePoints":
        # Python sets handlers in its main thread only.
        if self.alone and threading.current_thread() is threading.main_thread():
            for number in _ASKING:
                # What `nohup` ignores stays ignored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        self._last = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        # It may have come after the last save.
        if error is None:
            self.end_if_asked()

    def due(self, step: int) -> bool:
        """Whether to save after this step, the first of which is 1."""
        late = self.alone and time.monotonic() - self._last >= LONGEST
        found = step % self.every == 0 or late or self._asked is not None
        if found:
            self._last = time.monotonic()
        return found

    def end_if_asked(self) -> None:
        """Ends the process, or raises `KeyboardInterrupt`, where a signal asked for it; called after each save."""
        if self._asked is not None:
            self._restore()
            signal.raise_signal(self._asked)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())  # type: ignore[arg-type]
