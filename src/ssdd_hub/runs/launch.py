"""Start and end of a recipe: Accelerate, threads, the C library's allocator, error messages."""

import ctypes
import errno
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.precision import is_quick_in_bf16
from ssdd_hub.runs.folder import require_folder
from ssdd_hub.runs.lock import locks_released
from ssdd_hub.runs.machine import count_cpus, local_processes
from ssdd_hub.runs.restarts import process_group_settings
from ssdd_hub.runs.run_settings import LaunchSettings
from ssdd_hub.runs.trackers import require_trackers
from ssdd_hub.text import printable, show

# Other processes wait while one decodes, scores or saves, which takes hours on a large source.
_TIMEOUT = timedelta(days=7)
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536
_NEVER = -1
# Of Linux' prctl.h.
_PR_SET_PDEATHSIG = 1
# What `accelerate launch` and `torchrun` tell the processes that they start.
_LAUNCHED = ("ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID")
LAUNCHER = "SSDD_HUB_LAUNCHER"
"""The variable by which a recipe that starts another one tells its process number."""
# What we would ignore, or use in part, of what it tells them.
_UNUSED = {
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "--use_parallelism_config",
    "ACCELERATE_DYNAMO_BACKEND": "--dynamo_backend",
}
_NO = ("", "no", "false", "0")

# What the system refuses for reasons outside this package, and what to do.
_REFUSED = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota of the disk",
    errno.EFBIG: "raise the limit of the size of files (ulimit -f), or use a disk that takes larger ones",
    errno.EROFS: "make the disk writable, or choose another --output",
    errno.EACCES: "allow yourself to read and write there, or choose another place",
    errno.EPERM: "allow yourself to read and write there, or choose another place",
    errno.EIO: "look after the disk, which has an error",
    errno.ENOTDIR: "remove the file that stands where a folder is needed, or choose another place",
    errno.EEXIST: "remove the file that stands where a folder is needed, or choose another place",
    errno.EISDIR: "remove the folder that stands where a file is needed, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, since the system has too many open files",
    errno.ENOMEM: "close other programs, lower sizes of batches, or use a machine with more memory",
    errno.ESTALE: "mount the disk again",
}


def build_accelerator(settings: LaunchSettings, folder: Path) -> Accelerator:
    """Starts Accelerate for a recipe, whose trackers write below the run folder, with the threads of the settings.

    Raises:
        InputError: A tracker is not installed, or the launcher says what the recipes do not do: sharding, compiling,
            accumulated gradients.
    """
    end_with_launcher()
    refused = [option for name, option in _UNUSED.items() if os.environ.get(name, "no").lower() not in _NO]
    if refused:
        raise InputError(
            f"a set of a few megabytes is not sharded, and the recipes compile by --distiller.compile alone: launch "
            f"without {', '.join(refused)}"
        )
    require_trackers(settings.trackers)
    require_folder("--output", folder)
    try:
        local = local_processes()
        emulated = settings.mixed_precision == "bf16" and _emulates_bf16()
        accelerator = Accelerator(
            mixed_precision="no" if emulated else settings.mixed_precision,
            log_with=settings.trackers or None,
            project_dir=folder / "trackers",
            kwargs_handlers=[process_group_settings(_TIMEOUT)],
        )
    except (ValueError, ImportError) as error:
        given = f"--run.mixed-precision {settings.mixed_precision}"
        raise InputError(f"{given}, or a setting of the launcher, cannot be used: {error}") from error
    if emulated:
        accelerator.print(
            "computes in float32 in place of --run.mixed-precision bf16, which would be slower: this processor has no "
            "operations for it"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise InputError(
            "every step uses its whole batch, which --distiller.micro-batch splits where memory is short: launch "
            f"without --gradient_accumulation_steps {accelerator.gradient_accumulation_steps}"
        )
    # TF32 would round the kernel by more than the ridge, and processes that hold the same pool must stay alike.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.deterministic = True
    if accelerator.device.type == "cpu":
        torch.set_num_threads(settings.threads or max(1, count_cpus() // local))
        keep_freed_memory()
    return accelerator


def _emulates_bf16() -> bool:
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return on_cpu and not is_quick_in_bf16(torch.device("cpu"))


def end_with_launcher() -> None:
    """Ends this process as soon as the launcher that started it is gone, however that was killed; on Linux.

    Otherwise it would go on, where nobody stops it, and the next start would be refused because of it. A process that
    no launcher started goes on without the shell that did: `nohup python recipe.py &`.
    """
    if sys.platform == "linux" and any(name in os.environ for name in (*_LAUNCHED, LAUNCHER)):
        # The system itself sends the signal, also while this process computes outside Python.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have been gone before.
        if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
            signal.raise_signal(signal.SIGTERM)


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a recipe's `main`: wrong input ends it with a message instead of a traceback, and status 2."""

    @wraps(main)
    def _wrapped() -> None:
        # Python has none where they were closed before its start, and libraries write to them all the same.
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
        try:
            with locks_released():
                main()
        except SettingsError as error:
            _stop("".join(f"\n  - {problem}" for problem in error.problems), 2)
        except InputError as error:
            _stop(f" {error}", 2)
        except KeyboardInterrupt:
            _stop(" interrupted; the same command goes on from the last checkpoint", 130)
        except BrokenPipeError:
            # Or Python tries to write the rest at its end.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _stop(" what read the output is gone; the same command goes on from the last checkpoint", 1)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                _stop(f" the file system takes no name as long as {show(error.filename)}: choose a shorter one", 2)
            refusal = _refusal(error)
            if refusal is None:
                raise
            _stop(f" {refusal}", 1)

    return _wrapped


def _refusal(error: Exception) -> str | None:
    """Returns in words what the system refused; None for any other error."""
    # safetensors gives the number only in its message.
    stated = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(stated[1]) if stated else None
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        number = errno.ENOMEM
    if number == errno.ENOENT and not _has_folder():
        return "the working directory was removed: go to another one, and give the same command again"
    if number not in _REFUSED:
        return None
    place = f", {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return (
        f"the system refused to go on ({os.strerror(number)}{place}): {_REFUSED[number]}. What was saved before is "
        "whole: the same command goes on from there"
    )


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


@contextmanager
def keeping(finished: str, place: Path) -> Iterator[None]:
    """Adds to an error inside the block where finished work is, if it is there yet, and how to go on."""
    try:
        yield
    except Exception as error:
        if not place.exists():
            raise
        hint = f"{finished} is kept in {place}: the same command goes on from there, and repeats nothing of it"
        if isinstance(error, InputError):
            raise InputError(f"{error}\n{hint}") from error
        # A mistake of ours, or a machine without memory: the traceback that follows tells more.
        sys.stderr.write(f"{printable(hint)}\n")
        raise


def _stop(message: str, status: int) -> None:
    text = f"error:{printable(message)}"
    # Both launchers write a traceback of their own below; torchrun ends its with the content of this file.
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        content = {"message": {"message": text, "extraInfo": {"timestamp": int(time.time())}}}
        with suppress(OSError):
            Path(report).write_text(json.dumps(content), encoding="utf-8")
    elif "ACCELERATE_DYNAMO_MODE" in os.environ:
        text += "\n(accelerate launch adds a traceback of its own, which --quiet leaves out)"
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
    sys.exit(status)


def keep_freed_memory(keep: bool = True) -> bool:
    """Makes this process reuse freed memory for the next tensors, or no longer; returns whether the C library can.

    By itself, glibc gives each large block back to the system, which then clears every page anew: on the CPU this
    costs more than some layers. It also gives each thread an arena of its own, in which students side by side would
    not reuse what the main thread has freed: `keep` makes new threads share one, for the rest of the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    trim, blocks = (_NEVER, 0) if keep else (_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX)
    told = library.mallopt(_M_TRIM_THRESHOLD, trim) and library.mallopt(_M_MMAP_MAX, blocks)
    if keep:
        told = told and library.mallopt(_M_ARENA_MAX, 1)
    else:
        library.malloc_trim(0)
    return bool(told)
