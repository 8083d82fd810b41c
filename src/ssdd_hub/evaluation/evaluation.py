"""Pre-trains students on every set with one recipe and scores them with every protocol.

A *cell* is one set, one student, one seed, one protocol and one dataset, stored by itself. Student `k` has the same
first weights, and a protocol draws the same labelled images for it, whatever the set: scores can be paired.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from ssdd_hub.bounds import Count, Repeats, Settings
from ssdd_hub.errors import InputError
from ssdd_hub.evaluation.entries import SetEntry, StudentEntry
from ssdd_hub.evaluation.protocols.base import EvaluationProtocol, Measure, Pretrained
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.evaluation.store import ScoreStore
from ssdd_hub.models.layout import quick_layout
from ssdd_hub.models.pretraining import Pairs, StudentTrainingSettings, fit_student
from ssdd_hub.seeds import derive_seed, seeded

Record = dict[str, Any]
COST = "cost"


@dataclass(frozen=True)
class EvaluateSettings(Settings, section="evaluate"):
    """How much is evaluated.

    Attributes:
        seeds: Students per set, and draws of each reference.
        max_heldout: Held-out images of each dataset that scores are measured on, at most.
    """

    seeds: Repeats = 5
    max_heldout: Count = 2000


class Pretraining(NamedTuple):
    """One student that is pre-trained on one set."""

    candidate: StudentEntry
    pairs: Callable[[], Pairs | None]  # reads them
    use: StudentTrainingSettings
    steps: int


class Results(NamedTuple):
    """All numbers of an evaluation."""

    records: list[Record]
    by_class: dict[str, Any]  # as `Evaluation.measure` describes them


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All cells of an evaluation: those of every set, student, dataset and protocol."""

    set_entries: Sequence[SetEntry]
    candidates: Sequence[StudentEntry]
    datasets: Sequence[RealData]
    use: StudentTrainingSettings
    seeds: int  # students per set
    seed: int
    store: ScoreStore
    facts: Mapping[str, Any]  # entries that every record gets, such as `source`

    def __post_init__(self) -> None:
        for kind in ("set_entries", "candidates", "datasets"):
            names = [entry.name for entry in getattr(self, kind)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InputError(f"the {kind} of an evaluation must have names of their own, got {twice} twice")

    def run(self, accelerator: Accelerator) -> list[Record]:
        """Returns the records of `measure`."""
        return self.measure(accelerator).records

    def measure(self, accelerator: Accelerator) -> Results:
        """Measures the cells that are not there yet, shared out over the processes; a student may diverge.

        Returns:
            The records of `scores.json`: one per set, student, dataset, protocol, metric and number of labels, with
            mean, std (n - 1), n and all values; of accuracies the dataset's number of `classes` too; of what has a
            size `images` and `bytes`, and of what fills the bytes of a set, these as `budget`; of what was pre-trained
            otherwise than the sets, the difference as `training`. And the accuracies class by class: `classes`, for
            each dataset the `names` (None where it has none) and the number of held-out `images` of each class;
            `records` with the lists `mean` and `std` over the classes, None for a class
            without such images, and `n`, the seeds whose scores are known by class.
        """
        mine = self._share(accelerator)
        todo = _alike(mine)
        total = sum(len(job.missing) for jobs in todo for job in jobs)
        with tqdm(total=total, desc="evaluate", unit="cell", disable=not accelerator.is_main_process) as bar:
            run_side_by_side(todo, bar.update, self.datasets[0].device)
        measured = {(job.candidate.name, job.set_entry.name, job.k): job.measured() for job in mine}
        results = {place: found for share in gather_object([measured]) for place, found in share.items()}
        return Results(list(self._records(results)), self._by_class(results))

    def pretrainings(self, accelerator: Accelerator) -> list[Pretraining]:
        """Returns the pre-trainings that this process has still to do."""
        first = [next((job for job in jobs if job.pretrains), None) for jobs in _alike(self._share(accelerator))]
        found = [job.pretraining for job in first if job is not None]
        return [pretraining for pretraining in found if pretraining.steps]

    def _share(self, accelerator: Accelerator) -> list["_Job"]:
        """Returns the jobs of this process."""
        return self._jobs[accelerator.process_index :: accelerator.num_processes]

    @cached_property
    def _jobs(self) -> list["_Job"]:
        # Built once: each reads its selection to know its content.
        entries = product(range(self.seeds), self.candidates, self.set_entries)
        return [_Job(self, candidate, set_entry, k) for k, candidate, set_entry in entries]

    @cached_property
    def _classes(self) -> dict[str | None, int]:
        return {data.name: data.num_classes for data in self.datasets if data.labelled}

    def _measurements(self, results: "_Found") -> Iterator[tuple[Record, list[Measure | None]]]:
        """Yields what each record is about, and what was measured with each student, None where nothing was."""
        for candidate, set_entry in product(self.candidates, self.set_entries):
            students = [results[candidate.name, set_entry.name, k] for k in range(self.seeds)]
            sizes = _mean_size([set_entry.size(k) for k in range(self.seeds)])
            for protocol, target in dict.fromkeys(where for student in students for where in student):
                about = {"set": set_entry.name, "protocol": protocol, **self.facts, "target": target}
                about |= {"student": candidate.name, "use": self.use.augment, **sizes, **self._otherwise(set_entry)}
                cells = [student.get((protocol, target), []) for student in students]
                found = [{(measure.metric, measure.labels): measure for measure in cell} for cell in cells]
                for metric, labels in dict.fromkeys(kind for scores in found for kind in scores):
                    measures = [scores.get((metric, labels)) for scores in found]
                    yield {**about, "labels": labels, "metric": metric}, measures

    def _otherwise(self, set_entry: SetEntry) -> dict[str, str]:
        """Returns what is different in the pre-training on an entry, in words; nothing where nothing is."""
        usual, own = (asdict(use) for use in (self.use, set_entry.use or self.use))
        changes = [f"{name} {value}" for name, value in own.items() if value != usual[name]]
        return {"training": ", ".join(changes)} if changes else {}

    def _records(self, results: "_Found") -> Iterator[Record]:
        for about, measures in self._measurements(results):
            values = [None if measure is None else measure.value for measure in measures]
            # So that the level of chance is known.
            chance = about["metric"] == "accuracy" and about["target"] in self._classes
            known = {"classes": self._classes[about["target"]]} if chance else {}
            yield {**about, **describe_values(values), **known}

    def _by_class(self, results: "_Found") -> dict[str, Any]:
        records = []
        for about, measures in self._measurements(results):
            known = [measure.by_class for measure in measures if measure is not None and measure.by_class]
            if known:
                classes = [describe_values(values) for values in zip(*known, strict=True)]
                means = [each["mean"] if each["mean"] is None else round(each["mean"], 4) for each in classes]
                spreads = [round(each["std"], 4) if each["n"] else None for each in classes]
                records.append({**about, "mean": means, "std": spreads, "n": len(known)})
        there = {record["target"] for record in records}
        return {
            "classes": {d.name: d.describe_classes() for d in self.datasets if d.name in there},
            "records": records,
        }


_Measured = dict[tuple[str, str | None], list[Measure]]  # by protocol and dataset
_Found = Mapping[tuple[str, str, int], _Measured]  # by student, set and seed


@dataclass(frozen=True, eq=False)
class _Job:
    """One student pre-trained on one set, and all cells that need it."""

    evaluation: Evaluation
    candidate: StudentEntry
    set_entry: SetEntry
    k: int

    @property
    def use(self) -> StudentTrainingSettings:
        """How the student is pre-trained."""
        return self.set_entry.use or self.evaluation.use

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What every cell of this student depends on."""
        named, seed = self.set_entry.identity(self.k), [self.evaluation.seed, self.k]
        if self.set_entry.network is not None:
            return {"network": named, "seed": seed}
        student, use = self.candidate.identity, self.use.identity()
        return {"set": named, "student": student, "use": use, "seed": seed}

    @cached_property
    def cells(self) -> list[tuple[EvaluationProtocol, RealData, dict[str, Any]]]:
        """Protocols with their data, as this set_entry's students see it, and their key."""
        found, set_entry = [], self.set_entry
        for data in self.evaluation.datasets:
            targets = data.heldout_targets if set_entry.same_targets else None
            data = replace(data, heldout_targets=targets, pixel_space=set_entry.pixel_space or data.pixel_space)
            for protocol in self.candidate.protocols:
                if set_entry.protocols is None or protocol.name in set_entry.protocols:
                    key = {**self.identity, "data": data.identity, "protocol": protocol.name, **protocol.key(data)}
                    found.append((protocol, data, key))
        return found

    @property
    def cost_key(self) -> dict[str, Any]:
        """The key of the cost of the pre-training."""
        return {**self.identity, "protocol": COST}

    @cached_property
    def missing(self) -> list[tuple[EvaluationProtocol, RealData, dict[str, Any]]]:
        """The cells that are not stored at the start."""
        return [cell for cell in self.cells if self.evaluation.store.read(cell[2]) is None]

    @property
    def pretrains(self) -> bool:
        """Whether a missing cell needs a pre-trained student."""
        return any(not getattr(protocol, "trains_itself", False) for protocol, _, _ in self.missing)

    @property
    def pretraining(self) -> Pretraining:
        """What is done before a missing cell is measured."""
        pairs, size = partial(self.set_entry.pairs, self.k), self.set_entry.size(self.k).get("images")
        if size is None:
            size = len(pairs() or ())
        return Pretraining(self.candidate, pairs, self.use, self.use.num_steps(size) if size else 0)

    def run(self, done: Callable[[], object]) -> None:
        """Pre-trains the student and measures what is missing; a protocol that does not apply measures nothing."""
        store = self.evaluation.store
        try:
            # Another job of the same content may have been done in the meantime.
            if any(store.read(key) is None for _, _, key in self.missing):
                pretrained = self._pretrain()
            for protocol, data, key in self.missing:
                if store.read(key) is None:
                    store.write(key, protocol(pretrained, data) if protocol.applies(pretrained, data) else [])
                done()
        except InputError as error:
            raise InputError(f"{self.candidate.name} number {self.k} on {self.set_entry.name}: {error}") from error

    def _pretrain(self) -> Pretrained:
        use, store, pairs = self.use, self.evaluation.store, self.set_entry.pairs(self.k)
        seed = derive_seed(self.evaluation.seed, "evaluated student", self.k)
        student = self._build()
        if pairs is not None and self.pretrains:
            started, size, steps = time.perf_counter(), len(pairs), use.num_steps(len(pairs))
            fit_student(student, pairs, use, seed)
            cost = {"seconds": time.perf_counter() - started, "steps": steps}
            cost["epochs"] = steps * min(use.batch_size, size) / size
            # The first measurement stays, or a resumed evaluation would not end in the same table.
            if store.read(self.cost_key) is None:
                store.write(self.cost_key, [Measure(name, value) for name, value in cost.items()])
        return Pretrained(student, self._build, pairs, seed)

    def _build(self) -> nn.Module:
        with seeded(self.evaluation.seed, "evaluated student", self.k):
            student = (self.set_entry.network or self.candidate.build)()
        device = self.evaluation.datasets[0].device
        return student.to(device, memory_format=quick_layout(student, device)).eval()  # type: ignore[call-overload, no-any-return]

    def measured(self) -> _Measured:
        """Returns all that is stored."""
        read = self.evaluation.store.read
        found: _Measured = {(protocol.name, data.name): read(key) or [] for protocol, data, key in self.cells}
        return {**found, (COST, None): read(self.cost_key) or []}


def _alike(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Returns those that miss cells, by their content: one after another, they find what the first has measured."""
    found: dict[str, list[_Job]] = {}
    for job in jobs:
        if job.missing:
            found.setdefault(json.dumps(job.identity, sort_keys=True), []).append(job)
    return list(found.values())


class Job(Protocol):
    """Work for one core."""

    def run(self, done: Callable[[], object]) -> None:
        """Does it; calls `done` after each cell."""


def run_side_by_side(groups: Sequence[Sequence[Job]], done: Callable[[], object], device: torch.device) -> None:
    """Runs groups of jobs, on the CPU with one core each, as many at a time as torch has threads; elsewhere in turn.

    The steps of small students are too short to be shared by several cores.
    """

    def run(jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.run(done)

    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores if device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for _ in pool.map(run, groups):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _mean_size(sizes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns the mean of each part of a size; nothing of references that have none."""
    return {name: round(sum(size[name] for size in sizes) / len(sizes)) for name in sizes[0]}


def describe_values(values: Sequence[float | None]) -> dict[str, Any]:
    """Returns `mean`, `std` (n - 1; 0 of a single value), `n` and `values` for a record; None values do not count."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else 0.0,
        "n": len(known),
        "values": list(values),
    }
