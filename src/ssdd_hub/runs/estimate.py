"""The estimate of a run: its seconds and memory, told before the work, and the steps that fill given minutes.

Each package times its own stages, by some steps of throw-away copies; here they are put together.
"""

import dataclasses
import gc
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ssdd_hub.errors import Check, InputError
from ssdd_hub.plain_files import require_plain
from ssdd_hub.runs.folder import ESTIMATE_FILE, RunFolder
from ssdd_hub.runs.launch import keep_freed_memory
from ssdd_hub.runs.machine import peak_memory, total_memory
from ssdd_hub.seeds import generators_kept
from ssdd_hub.settings import to_dict

_LOG = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Any)
FEWEST_STEPS = 100
"""Steps of a run from which on it is estimated; a smaller one ends about as soon as its estimate."""
MOST_TIMES = 10
"""How many times the steps of the settings `minutes` makes at most."""
_FEW = 0.1  # of these steps: fewer make a poor set
_LONGEST = 366 * 24 * 60  # minutes
_WARM, _SHARE, _SECONDS, _MOST = 3, 0.02, 2.0, 50  # of timing: first steps left out; share, seconds and steps at most
_LARGEST_FILE = 2**20  # bytes
_FULL = 0.9  # of the memory, from which on a run may end by the lack of it
_BEFORE = "start and images"
# What makes a stage shorter whose steps are not chosen.
_LOWER = {
    _BEFORE: "--data.max-images",
    "features": "--data.max-images",
    "warm-up": "--pool.max-age",
    "evaluation": "--evaluate.seeds or --student-training.epochs",
    "its scores": "--watch.max-images",
}


@dataclass(frozen=True)
class Stage:
    """What is left of a stage of a run.

    Attributes:
        name: What it does.
        steps: Its steps; 0 where it has none, or none is left.
        seconds: What it takes in all.
        settings: Given another number of steps, returns the settings that make it; None where `minutes` leaves it.
    """

    name: str
    steps: int
    seconds: float
    settings: Callable[[int], dict[str, int]] | None = None


def minutes_checks(minutes: float | None, estimate: bool) -> Iterator[Check]:
    """Yields what the setting `minutes` must be."""
    known = minutes is None or 0 < minutes <= _LONGEST
    yield known, f"minutes must be above 0 and at most {_LONGEST}, a year; got {minutes}"
    yield minutes is None or estimate, "minutes needs the estimate: leave out --run.estimate false"


def is_worth_it(config: Any, steps: int) -> bool:
    """Whether a run of so many steps is estimated: it is asked to, and not too small; or `minutes` sizes it."""
    return bool(config.run.estimate) and (steps >= FEWEST_STEPS or config.minutes is not None)


def time_steps(step: Callable[[], object], steps: int, accelerator: Accelerator) -> float:
    """Returns the seconds that a step of a loop of `steps` takes; 0 where there are none.

    Some steps are done, the same number on all processes: fewer than a loop has, 3 of them before the clock starts,
    then as many as take 2 % of the loop and 2 seconds at most, one at least.
    """
    if steps <= 0:
        return 0.0
    for _ in range(min(_WARM, steps - 1)):
        step()
    one = _seconds(step, 1, accelerator)
    few = int(min(_SHARE * steps, _SECONDS / max(one, 1e-9), _MOST, steps - _WARM)) - 1
    # The main process decides, or some would wait for the steps of the others.
    few = broadcast_object_list([few])[0]
    return one if few < 1 else (one + few * _seconds(step, few, accelerator)) / (few + 1)


def _seconds(step: Callable[[], object], count: int, accelerator: Accelerator) -> float:
    def now() -> float:
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        return time.perf_counter()

    started = now()
    for _ in range(count):
        step()
    return (now() - started) / count


def fill(stages: Sequence[Stage], minutes: float, spent: float) -> tuple[list[Stage], dict[str, int]]:
    """Returns stages whose steps fill `minutes`, and the settings that make so many; `spent` seconds are gone.

    Stages with `settings` keep the ratio of their steps; they get `MOST_TIMES` those that they have at most.

    Raises:
        InputError: What has no steps to choose takes that long already, or nothing has.
    """
    sized = [stage for stage in stages if stage.settings and stage.steps]
    fixed = [stage for stage in stages if stage not in sized]
    usual = sum(stage.seconds for stage in sized)
    if not usual:
        raise InputError("minutes chooses steps of a training, and none is left or wanted: leave out --minutes")
    left = 60 * minutes - spent - sum(stage.seconds for stage in fixed)
    times = min(MOST_TIMES, left / usual)
    if any(times * stage.steps < 1 for stage in sized):
        costs = {_BEFORE: spent, **{stage.name: stage.seconds for stage in fixed if stage.seconds >= 0.5}}
        told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in costs.items())
        options = list(dict.fromkeys(_LOWER[name] for name in costs if name in _LOWER))
        least = (60 * minutes - left + usual * _FEW) / 60
        raise InputError(
            f"--minutes {minutes:g} are {60 * minutes:.0f} s, of which no training step can be made beside {told}: "
            f"give {least:.2g} minutes or more, or lower {', '.join(options)}"
        )
    chosen, filled = dict[str, int](), list[Stage]()
    for stage in stages:
        if stage.settings and stage.steps:
            steps = int(times * stage.steps)
            chosen |= stage.settings(steps)
            stage = replace(stage, steps=steps, seconds=stage.seconds / stage.steps * steps)
        filled.append(stage)
    if times < _FEW:
        _LOG.warning("%g minutes leave %.1g %% of the steps that the settings have: too few", minutes, 100 * times)
    return filled, chosen


class Estimate:
    """The stages of a run as they were estimated, and the seconds that each then took.

    Args:
        run: The run, whose `estimate.json` it becomes.
        started: When the run started, by `time.perf_counter`.
        stages: What is left to do; none where nothing was estimated.
        sizes: Minutes that the run was sized for, and the settings that gave it its steps.
        memory: Bytes of the process's peak, also on the GPU.
    """

    def __init__(
        self,
        run: RunFolder,
        started: float,
        stages: Sequence[Stage] = (),
        sizes: tuple[float, dict[str, int]] | None = None,
        memory: Mapping[str, int] | None = None,
    ) -> None:
        self._run, self._started, self.stages, self.sizes = run, started, list(stages), sizes
        self.memory = dict(memory or {})
        self._taken, self._ended = dict[str, float](), time.perf_counter()
        self._whole: float | None = None
        self.spent = self._ended - started
        if stages:
            run.estimate = self.to_dict()

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run, those before the estimate included."""
        return self.spent + sum(stage.seconds for stage in self.stages)

    def done(self, name: str) -> None:
        """Notes that a stage has ended, and what it took since the one before it."""
        now = time.perf_counter()
        self._taken[name] = self._taken.get(name, 0.0) + now - self._ended
        self._ended = now

    def total(self) -> str:
        """Returns the seconds of the whole run until now, in words, beside those estimated."""
        told = f" ({self.seconds:.0f} s were estimated)" if self.stages else ""
        return f"{time.perf_counter() - self._started:.0f} s{told}"

    def finish(self, name: str) -> str:
        """Notes the end of the last stage, writes `estimate.json`, and returns the seconds of each stage in words."""
        self.done(name)
        self._whole = self._ended - self._started
        if not self.stages:
            return ""
        self._run.write_json(ESTIMATE_FILE, self.to_dict())
        taken = {name: f"{seconds:.1f}" for name, seconds in self._taken.items()}
        told = [f"{each.name} {each.seconds:.1f}/{taken.get(each.name, '-')}" for each in self.stages]
        return f"seconds estimated/taken: {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `estimate.json`; `taken` is None until the end."""
        rows = [
            {"name": each.name, "steps": each.steps, "seconds": each.seconds, "taken": self._taken.get(each.name)}
            for each in self.stages
        ]
        minutes, chosen = self.sizes or (None, None)
        return {
            "minutes": minutes,
            "settings": chosen,
            "before": self.spent,
            "seconds": self.seconds,
            "taken": self._whole,
            "memory_gib": {name: round(size / 2**30, 2) for name, size in self.memory.items()},
            "stages": rows,
        }

    def __str__(self) -> str:
        rows = [(_BEFORE, "", self.spent)]
        rows += [(stage.name, f"{stage.steps}" if stage.steps else "", stage.seconds) for stage in self.stages]
        rows += [("total", "", self.seconds)]
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'estimate':<{width}}    steps   seconds"]
        lines += [f"{name:<{width}} {steps:>8} {seconds:>9.1f}" for name, steps, seconds in rows]
        return "\n".join([*lines, *self._told()])

    def _told(self) -> Iterator[str]:
        for name, size in self.memory.items():
            total = total_memory(torch.device("cuda" if name == "device" else "cpu"))
            yield f"memory: at least {size / 2**30:.2g} GiB for each process, of {total / 2**30:.3g} ({name})"
            if size > _FULL * total:
                yield (
                    "it may not fit: lower --teacher-training.batch-size, --distiller.batch-size, --pool.size where "
                    "there is a pool, or the sizes in --method.args"
                )
        if self.sizes:
            options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.sizes[1].items())
            yield f"for {self.sizes[0]:g} minutes; without --minutes, the same steps by: {options}"


def as_sized(config: Config) -> Config:
    """Returns settings with the steps that `minutes` chose when the run in their `output` was begun, if any was.

    Raises:
        InputError: The run was sized for other minutes, or its record is damaged.
    """
    sizes = None if config.minutes is None else _read_sizes(Path(config.output))
    if sizes is None:
        return config
    if sizes[0] != config.minutes:
        raise InputError(
            f"--output {config.output} holds a run that was sized for {sizes[0]:g} minutes, not {config.minutes:g}: "
            f"give --minutes {sizes[0]:g}, or choose another --output"
        )
    return with_settings(config, {"minutes": None, **sizes[1]})


def estimate(
    config: Config, run: RunFolder, accelerator: Accelerator, started: float, stages: Callable[[], Iterable[Stage]]
) -> tuple[Config, Estimate]:
    """Times the stages of a run, chooses the steps that fill its `minutes`, and prints the estimate.

    All processes call it; the main one decides. Nothing of the run's random state changes.

    Args:
        config: The settings, with `minutes` and `run.estimate`.
        run: The run, before its `start`.
        accelerator: Device and processes.
        started: When the run started, by `time.perf_counter`.
        stages: Times what is left; none where nothing is.

    Returns:
        The settings with the steps that were chosen, which are then those of the run, and the estimate.

    Raises:
        InputError: The minutes do not suffice.
    """
    with generators_kept(accelerator.device):
        found = list(stages())
    if not found:
        return config, Estimate(run, started)
    on_gpu = accelerator.device.type == "cuda"
    # The run plans by the memory that is free, as if nothing had been before it.
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    elif keep_freed_memory(False):
        keep_freed_memory()
    memory = {"cpu": peak_memory(), **({"device": torch.cuda.max_memory_allocated()} if on_gpu else {})}
    numbers = ([stage.seconds for stage in found], time.perf_counter() - started, memory)
    seconds, spent, memory = broadcast_object_list([numbers])[0]
    found = [replace(stage, seconds=each) for stage, each in zip(found, seconds, strict=True)]
    sizes = None
    if config.minutes is not None:
        found, chosen = fill(found, config.minutes, spent)
        sizes = config.minutes, chosen
        config = with_settings(config, {"minutes": None, **chosen})
        run.config = to_dict(config)
    else:
        with suppress(InputError):
            sizes = _read_sizes(run.path)
    made = Estimate(run, started, found, sizes, memory)
    accelerator.print(f"\n{made}\n")
    return config, made


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns settings of which some, by dotted name, are others."""
    for name, value in values.items():
        section, _, inner = name.partition(".")
        if inner:
            value = with_settings(getattr(config, section), {inner: value})
        config = dataclasses.replace(config, **{section: value})
    return config


def _read_sizes(folder: Path) -> tuple[float, dict[str, int]] | None:
    """Returns the minutes of the run in a folder and the settings chosen for them; None where there are none."""
    path = folder / ESTIMATE_FILE
    require_plain(folder, [ESTIMATE_FILE])
    # Without settings no run was begun.
    if not (path.exists() and (folder / "config.yaml").exists()):
        return None
    try:
        with path.open("rb") as file:
            stated = json.loads(file.read(_LARGEST_FILE))
        minutes, chosen = stated["minutes"], stated["settings"]
        if minutes is None:
            return None
        known = isinstance(minutes, int | float) and all(type(value) is int for value in chosen.values())
        if not known or not chosen.keys() <= {
            "teacher_training.epochs",
            "teacher_training.max_steps",
            "distiller.steps",
        }:
            raise ValueError("its settings are no steps")
        return float(minutes), chosen
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): leave out --minutes and give the steps that config.yaml there holds"
        ) from error
