"""First evaluation: does a network pre-trained on the set know what the teacher knows?

A *set* here is any pair of images and targets; the references go through the same recipe with the same student seeds.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ssdd_hub.errors import InputError, require
from ssdd_hub.protocols import Pair, RealData, linear_probe, teacher_error
from ssdd_hub.streams import draw_batch, seeded

Record = dict[str, Any]


@dataclass(frozen=True)
class EvaluateSettings:
    """How students are pre-trained on a set and what is measured; the defaults are the paper's use of its sets.

    Attributes:
        seeds: Students per set.
        epochs: Passes over the set.
        batch_size: Images per step.
        learning_rate: SGD's, constant.
        momentum: SGD's.
        weight_decay: SGD's.
        labels: Labelled images of the linear probe, the same number per class where that is possible.
        label_draws: Draws of labelled images, over which a student's probe is averaged.
        max_heldout: Held-out images used, at most.
    """

    seeds: int = 5
    epochs: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    labels: int = 50
    label_draws: int = 10
    max_heldout: int = 2000

    def __post_init__(self) -> None:
        counts = ("seeds", "batch_size", "label_draws", "max_heldout")
        require(
            (self.labels >= 2, f"evaluate.labels must be at least 2, or there is nothing to tell, got {self.labels}"),
            *(
                (getattr(self, name) >= 1, f"evaluate.{name} must be at least 1, got {getattr(self, name)}")
                for name in counts
            ),
            (self.epochs >= 0, f"evaluate.epochs must be at least 0, got {self.epochs}"),
            (self.learning_rate > 0, f"evaluate.learning_rate must be above 0, got {self.learning_rate}"),
            (0 <= self.momentum < 1, f"evaluate.momentum must be in [0, 1), got {self.momentum}"),
            (self.weight_decay >= 0, f"evaluate.weight_decay must be at least 0, got {self.weight_decay}"),
        )

    def use(self) -> dict[str, Any]:
        """Returns the recipe for using a set, for its card."""
        return {
            "loss": "mean squared error of the head's output to the target",
            "optimizer": "SGD",
            "learning_rate": self.learning_rate,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "augmentation": "none",
        }


def fit_student(
    student: nn.Module, images: Tensor, targets: Tensor, settings: EvaluateSettings, seed: int
) -> nn.Module:
    """Pre-trains a student on a set: SGD on the mean squared error of its head to the targets.

    Args:
        student: Freshly built, on the device of the set.
        images: `(M, C, H, W)`, in the student's pixel space.
        targets: `(M, D)`.
        settings: See `EvaluateSettings`.
        seed: Seed of the order of the images.

    Returns:
        The student, in eval mode.
    """
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    batch_size = min(settings.batch_size, len(images))
    student.train()
    for step in range(settings.epochs * len(images) // batch_size):
        indices = draw_batch(len(images), batch_size, seed, "use of the set", step).to(images.device)
        loss = functional.mse_loss(student(images[indices]), targets[indices])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return student.eval()


def evaluate(
    sets: Mapping[str, Callable[[int], Pair | None]],
    build_student: Callable[[], nn.Module],
    data: RealData,
    settings: EvaluateSettings,
    *,
    seed: int,
    accelerator: Accelerator,
    facts: dict[str, Any] | None = None,
) -> list[Record]:
    """Pre-trains one student per set and seed and measures each; the work is shared out over the processes.

    Args:
        sets: For each name, a function from the index of the seed to images and targets; None is no pre-training.
        build_student: Returns a fresh student on the CPU; called under a seeded global generator.
        data: The real images.
        settings: See `EvaluateSettings`.
        seed: Seed of the run; student `k` has the same first weights and labelled images for every set.
        accelerator: Names the processes.
        facts: Entries that every record gets, such as `source` and `student`.

    Returns:
        The records of `scores.json`: one per set and protocol, with mean, std (n - 1), n and all values.

    Raises:
        InputError: A student diverges.
    """
    jobs = [(name, k) for name in sets for k in range(settings.seeds)]
    mine = jobs[accelerator.process_index :: accelerator.num_processes]

    def _run(job: tuple[str, int]) -> dict[str, float]:
        name, k = job
        return _evaluate_one(sets[name](k), build_student, data, settings, seed, k)

    done = dict(zip(mine, _run_side_by_side(_run, mine, data.device, accelerator.is_main_process), strict=True))
    results = {job: values for share in gather_object([done]) for job, values in share.items()}
    protocols = list(next(iter(results.values())))
    return [
        _record(name, protocol, [results[name, k][protocol] for k in range(settings.seeds)], settings, facts or {})
        for name in sets
        for protocol in protocols
    ]


def _run_side_by_side(
    run: Callable[[tuple[str, int]], dict[str, float]],
    jobs: list[tuple[str, int]],
    device: torch.device,
    progress: bool,
) -> list[dict[str, float]]:
    """Runs jobs on the CPU with one core each, as many at a time as torch has threads; elsewhere one by one.

    The steps of small students are too short to be shared by several cores.
    """
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores if device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(tqdm(pool.map(run, jobs), "evaluate", len(jobs), unit="student", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _evaluate_one(
    pair: Pair | None,
    build_student: Callable[[], nn.Module],
    data: RealData,
    settings: EvaluateSettings,
    seed: int,
    k: int,
) -> dict[str, float]:
    with seeded(seed, "evaluated student", k):
        student = build_student()
    student = student.to(data.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    if pair is not None:
        fit_student(student, *pair, settings, seed=k)
    values = {"teacher_error": teacher_error(student, data)}
    if not math.isfinite(values["teacher_error"]):
        raise InputError(f"student {k} diverges when it is pre-trained on the set: lower --evaluate.learning-rate")
    if data.labelled:
        values["probe"] = linear_probe(student, data, settings.labels, k, settings.label_draws)
    return values


def _record(
    name: str, protocol: str, values: list[float], settings: EvaluateSettings, facts: dict[str, Any]
) -> Record:
    return {
        "set": name,
        "protocol": protocol,
        **facts,
        "labels": settings.labels if protocol == "probe" else None,
        **({"label_draws": settings.label_draws} if protocol == "probe" else {}),
        "metric": "accuracy" if protocol == "probe" else "mse",
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "n": len(values),
        "values": values,
    }
