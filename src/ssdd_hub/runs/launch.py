"""Start and end of a recipe: Accelerate, threads, the C library's allocator, error messages."""

import ctypes
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.runs.folder import LaunchSettings
from ssdd_hub.runs.machine import count_cpus
from ssdd_hub.text import printable, show

# Other processes wait while one decodes, scores or saves, which takes hours on a large source.
_TIMEOUT = timedelta(days=7)
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536
_NEVER = -1


def build_accelerator(settings: LaunchSettings, folder: Path) -> Accelerator:
    """Starts Accelerate for a recipe, whose trackers write below the run folder, with the threads of the settings.

    Raises:
        InputError: A tracker is unknown, or the processes were started with FSDP, DeepSpeed or accumulated gradients.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            log_with=settings.trackers or None,
            project_dir=folder / "trackers",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_TIMEOUT)],
        )
    except ValueError as error:
        given = f"--run.trackers {settings.trackers} or --run.mixed-precision"
        raise InputError(f"{given} cannot be used: {error}") from error
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(
            f"the distilled set is a few megabytes and is not sharded: launch without {accelerator.distributed_type}"
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
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(settings.threads or max(1, count_cpus() // local))
        keep_freed_memory()
    return accelerator


def report_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a recipe's `main`: wrong input ends it with a message instead of a traceback, and status 2."""

    @wraps(main)
    def _wrapped() -> None:
        try:
            main()
        except SettingsError as error:
            _stop("".join(f"\n  - {problem}" for problem in error.problems), 2)
        except InputError as error:
            _stop(f" {error}", 2)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            _stop(f" the file system takes no name as long as {show(error.filename)}: choose a shorter one", 2)
        except KeyboardInterrupt:
            _stop(" interrupted; the same command goes on from the last checkpoint", 130)

    return _wrapped


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
    sys.stderr.write(f"{text}\n")
    sys.exit(status)


def keep_freed_memory(keep: bool = True) -> bool:
    """Makes this process reuse freed memory for the next tensors, or no longer; returns whether the C library can.

    By itself, glibc gives each large block back to the system, which then clears every page anew: on the CPU this
    costs more than some layers.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    trim, blocks = (_NEVER, 0) if keep else (_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX)
    told = library.mallopt(_M_TRIM_THRESHOLD, trim) and library.mallopt(_M_MMAP_MAX, blocks)
    if not keep:
        library.malloc_trim(0)
    return bool(told)
