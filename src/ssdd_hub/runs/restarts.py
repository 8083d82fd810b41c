"""Rendezvous of the processes of a run: those of a new attempt do not read what those of an earlier one left there.

An elastic launcher (`torchrun`, `accelerate launch`) keeps one store of keys for all attempts, torch 2.14 still does.
Until new processes have written theirs, its keys are those of the last attempt, such as the address of a process that
is gone, and who reads one then fails. So each attempt has keys of its own, here.

That needs all processes to know the same number. Launchers of several machines count for themselves, and may differ; a
new port for each attempt does it there, by the variable `TORCH_DISABLE_SHARE_RDZV_TCP_STORE`.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from accelerate.utils import InitProcessGroupKwargs
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

ATTEMPT, MACHINES = "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"
_SCHEME = "ssdd-hub-attempt"


def process_group_settings(timeout: timedelta) -> InitProcessGroupKwargs:
    """Returns how Accelerate starts the process group; `timeout` is how long its processes wait for one another."""
    alone = os.environ.get(MACHINES) == "1" and ATTEMPT in os.environ
    return InitProcessGroupKwargs(init_method=f"{_SCHEME}://" if alone else None, timeout=timeout)


def _rendezvous_of_attempt(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """Yields the store of the present attempt, the number of this process, and how many there are."""
    for store, rank, world in rendezvous(f"env://?{urlsplit(url).query}", **options):
        yield PrefixStore(f"attempt {os.environ[ATTEMPT]}", store), rank, world


register_rendezvous_handler(_SCHEME, _rendezvous_of_attempt)  # type: ignore[no-untyped-call]
