"""A function called in a process of its own, and what became of it: its peak memory is that of the call alone."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from ssdd_hub.errors import InputError

_LONGEST = 300  # characters of a reason; torch adds its C++ stack to some


class ApartError(RuntimeError):
    """The call gave no result; the message says why."""


def call_apart(function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
    """Calls a function in a fresh process and waits for its result.

    Where the memory of the machine is full, Linux ends that process before any other.

    Args:
        function: Can be imported by its name, as everything that is sent to a process.
        *arguments: Its arguments; like its result, they can be pickled.
        timeout: Seconds until the process is ended, its start included.

    Raises:
        ApartError: It ran out of time or memory, was ended by the system, or raised an `InputError`, `MemoryError`,
            `OSError` or `RuntimeError`. After any other error too, whose traceback stands in the process's own output.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_reply, args=(sender, function, arguments))  # type: ignore[attr-defined]
    process.start()
    # While this end is open, the other would not notice that the process is gone.
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise ApartError(f"it took longer than {timeout:g} s")
        result, problem = receiver.recv()
    except EOFError:
        process.join()
        raise ApartError(_ending(process.exitcode)) from None
    finally:
        # Its reply is all that is wanted of it.
        if process.is_alive():
            process.kill()
        process.join()
        process.close()
        receiver.close()
    if problem is not None:
        raise ApartError(problem)
    return result


def _context() -> BaseContext:
    # Linux lets a program begin with the peak of the process that started it. The fork server's children, which start
    # no program, begin with their own; they import everything themselves, as nothing is imported before them.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([])
    return context


def _reply(connection: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Runs in the process: sends the result, or why there is none."""
    # An interrupt of the terminal reaches all processes; the waiting one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):
        Path(f"/proc/{os.getpid()}/oom_score_adj").write_text("1000")
    reply: tuple[Any, str | None]
    try:
        reply = function(*arguments), None
    except InputError as error:
        reply = None, _shortened(str(error))
    except (MemoryError, OSError, RuntimeError) as error:
        reply = None, _shortened(f"{type(error).__name__}: {error}")
    connection.send(reply)


def _shortened(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with status {code}"
    name = signal.Signals(-code).name
    return f"the system ended its process ({name})" + (", as when memory is full" if name == "SIGKILL" else "")
