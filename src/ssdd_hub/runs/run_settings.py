"""Settings of how the processes of a recipe compute, save and report: its section `run`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from ssdd_hub.bounds import Count, Processes, Settings, either, some_of
from ssdd_hub.errors import Check


def launched_precision() -> str:
    """Returns the mixed precision that the launcher says, `no` without one."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"


@dataclass(frozen=True)
class LaunchSettings(Settings, section="run"):
    """How the processes of a run compute.

    Attributes:
        mixed_precision: `no` or `bf16`, for the networks; the kernel is never built in reduced precision. When not
            given, what `accelerate launch` says, by `--mixed_precision` or its config file. On one machine whose CPU
            has no operations for bf16, networks compute in float32 all the same.
        threads: CPU threads of each process. When not given, the processes of a machine share its cores, where
            `accelerate launch` would leave each process with one.
        trackers: Accelerate's trackers, such as `tensorboard`, of trainings and scores; the JSONL log is always
            written.
    """

    mixed_precision: Annotated[str, either("no", "bf16")] = field(default_factory=launched_precision)
    threads: Processes | None = None
    trackers: Annotated[list[str], some_of(LOGGER_TYPE_TO_CLASS)] = field(default_factory=list)

    def conflicts(self) -> Iterator[Check]:
        """Yields that the launcher must say the same, and nothing that we cannot do."""
        launched = launched_precision()
        # Where the user says nothing, it says no.
        yield (
            launched in ("no", "bf16") and launched in ("no", self.mixed_precision),
            (
                f"run.mixed_precision is {self.mixed_precision}, and accelerate launch says --mixed_precision "
                f"{launched}: leave one of them out, or launch with --mixed_precision no or bf16"
            ),
        )


@dataclass(frozen=True)
class UntrackedSettings(LaunchSettings):
    """How the processes of a recipe compute that has neither training nor scores for trackers.

    Attributes:
        mixed_precision: As in `LaunchSettings`.
        threads: As in `LaunchSettings`.
        trackers: None: there is nothing that they could be told.
    """

    def conflicts(self) -> Iterator[Check]:
        """Yields that there are no trackers."""
        yield from super().conflicts()
        yield not self.trackers, f"run.trackers must be left out here: nothing is told to {', '.join(self.trackers)}"


@dataclass(frozen=True)
class EstimatedSettings(LaunchSettings):
    """How the processes of a run compute, and whether its time is estimated.

    Attributes:
        mixed_precision: `no` or `bf16`, for the networks; the kernel is never built in reduced precision. When not
            given, what `accelerate launch` says, by `--mixed_precision` or its config file. On one machine whose CPU
            has no operations for bf16, networks compute in float32 all the same.
        threads: CPU threads of each process. When not given, the processes of a machine share its cores, where
            `accelerate launch` would leave each process with one.
        trackers: Accelerate's trackers, such as `tensorboard`; the JSONL log is always written.
        estimate: Measure before the start how long a run of 100 steps or more will take, on a few steps of copies.
    """

    estimate: bool = True


@dataclass(frozen=True)
class RunSettings(EstimatedSettings):
    """How the processes of a distillation compute, and how often they save.

    Attributes:
        mixed_precision: `no` or `bf16`, for the networks; the kernel is never built in reduced precision. When not
            given, what `accelerate launch` says, by `--mixed_precision` or its config file. On one machine whose CPU
            has no operations for bf16, networks compute in float32 all the same.
        threads: CPU threads of each process. When not given, the processes of a machine share its cores, where
            `accelerate launch` would leave each process with one.
        trackers: Accelerate's trackers, such as `tensorboard`, of trainings and scores; the JSONL log is always
            written.
        estimate: Measure before the start how long a run of 100 steps or more will take, on a few steps of copies.
        checkpoint_every: Outer steps between checkpoints.
        log_every: Outer steps between writes of the log, which holds every step.
        cache: Folder of cached teacher features; `features/` of the run folder when not given.
    """

    checkpoint_every: Count = 1000
    log_every: Count = 50
    cache: str | None = None
