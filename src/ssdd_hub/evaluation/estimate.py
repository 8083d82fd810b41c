"""Time estimates of the first evaluation of a set, and of what any evaluation has left, from trials on each core."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ssdd_hub.evaluation.entries import StudentEntry
from ssdd_hub.evaluation.evaluation import Evaluation, Pretraining, run_side_by_side
from ssdd_hub.evaluation.protocols.backbone_probe import BackboneProbe, BackboneProbeSettings
from ssdd_hub.evaluation.protocols.base import Pretrained
from ssdd_hub.evaluation.protocols.linear_probe import LinearProbe, ProbeSettings
from ssdd_hub.evaluation.protocols.teacher_error import TeacherError
from ssdd_hub.evaluation.real_data import RealData
from ssdd_hub.models.layout import quick_layout
from ssdd_hub.models.pretraining import Pairs, StudentTrainingSettings, fit_student
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.estimate import FEWEST_STEPS, Stage
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs

_IMAGES, _LABELS = 512, 1000  # of a trial, at most: held-out images, and labelled ones of a probe
_FEW = 32  # held-out images, and images of a set, that a frozen network reads in a trial, at most
_SECONDS, _STEPS = 0.5, 20  # that training is timed for, at most


@dataclass
class _Trial:
    """A student that is trained for some steps and scored on few images; `seconds` of a whole training and scoring."""

    candidate: StudentEntry
    pairs: SetPairs
    data: RealData
    use: StudentTrainingSettings
    probe: ProbeSettings
    seconds: list[float] = field(default_factory=list)

    def run(self, done: Callable[[], object]) -> None:
        """Measures both, as they are done in an evaluation."""
        steps = self.use.num_steps(len(self.pairs))
        each = _step_seconds(self.candidate, self.pairs, self.use, steps, self.data.device)
        # Not the trained one, which may have diverged.
        fresh = _fresh(self.candidate, self.data.device).eval()
        pretrained = Pretrained(fresh, self.candidate.build, self.pairs, 0)
        self.seconds = [steps * each, self._scoring(pretrained)]

    def _scoring(self, pretrained: Pretrained) -> float:
        data, count = self.data, len(self.data.heldout)
        few = replace(data, heldout=data.heldout.subset(torch.arange(min(count, _IMAGES))))
        if data.heldout_targets is not None:
            few = replace(few, heldout_targets=data.heldout_targets[: len(few.heldout)])
        image = _timed(lambda: TeacherError()(pretrained, few)) / len(few.heldout)
        if not (data.labelled and few.labelled):
            return count * image
        known = len(data.known(data.train))
        amounts = [
            (max(2, round(amount * known) if amount <= 1 else int(amount)), amount) for amount in self.probe.labels
        ]
        tried = [pair for pair in amounts if pair[0] <= _LABELS] or [min(amounts)]
        trial = LinearProbe(replace(self.probe, labels=[amount for _, amount in tried], draws=1))
        whole, part = sum(size for size, _ in amounts), sum(size for size, _ in tried)
        fit = _timed(lambda: trial(pretrained, few)) - image * (len(few.heldout) + max(tried)[0])
        seen = min(known, self.probe.draws * max(amounts)[0])
        return image * (2 * count + seen) + max(0.0, fit) * self.probe.draws * whole / part


def _fresh(candidate: StudentEntry, device: torch.device) -> nn.Module:
    student = candidate.build()
    return student.to(device, memory_format=quick_layout(student, device))  # type: ignore[call-overload, no-any-return]


def _step_seconds(
    candidate: StudentEntry, pairs: Pairs, use: StudentTrainingSettings, steps: int, device: torch.device
) -> float:
    """Returns the seconds of a step of a pre-training of so many; 0 of none."""
    student = _fresh(candidate, device)

    def fit(count: int) -> float:
        return _timed(lambda: fit_student(student, pairs, replace(use, max_steps=count), 0)) / count

    if not steps:
        return 0.0
    each = fit(min(2, steps))
    return fit(max(1, min(steps // 10, _STEPS, int(_SECONDS / each))))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_evaluation(
    candidate: StudentEntry,
    size: int,
    data: RealData,
    use: StudentTrainingSettings,
    probe: ProbeSettings,
    seeds: int,
    accelerator: Accelerator,
) -> Stage:
    """Times an evaluation of a set of `size` images beside as many random ones and no pre-training.

    `data` needs no right targets, nor any. Students run side by side, as they will: each core does a trial.
    """
    shape = candidate.identity
    images = torch.randn(size, shape["in_chans"], shape["image_size"], shape["image_size"])
    made = DistilledSet(images, torch.randn(size, shape["num_targets"]), PixelSpace.raw(shape["in_chans"]))
    if data.heldout_targets is None:
        data = replace(data, heldout_targets=torch.zeros(len(data.heldout), shape["num_targets"]))
    jobs = -(-3 * seeds // accelerator.num_processes)
    cores = min(torch.get_num_threads(), jobs) if data.device.type == "cpu" else 1
    trials = [_Trial(candidate, SetPairs(made, data.device), data, use, probe) for _ in range(cores)]
    run_side_by_side([[trial] for trial in trials], lambda: None, data.device)
    training, scoring = (sum(times) / cores for times in zip(*(trial.seconds for trial in trials), strict=True))
    # In the order of an evaluation: the set, random images, none.
    free = [0.0] * cores
    heapify(free)
    for number in range(jobs):
        heappush(free, heappop(free) + scoring + (training if number % 3 < 2 else 0.0))
    return Stage("evaluation", 3 * seeds, max(free))


@dataclass
class _ProbeTrial:
    """A probe of a frozen network on one view of few images; `seconds` of a held-out image, and of a view of an image.

    `least` is the number of images, one of each class at most.
    """

    probe: BackboneProbe
    data: RealData
    least: int
    seconds: list[float] = field(default_factory=list)

    def run(self, done: Callable[[], object]) -> None:
        """Measures both, as they are done in an evaluation."""
        data = replace(self.data, heldout=self.data.heldout.subset(torch.arange(min(len(self.data.heldout), _FEW))))
        side, chans = data.heldout.image_size, data.heldout.num_channels
        images, labels = torch.rand(self.least, chans, side, side), torch.arange(self.least)
        names = data.heldout.label_names
        made = DistilledSet(images, torch.eye(self.least), PixelSpace.raw(chans), labels=labels, label_names=names)
        pretrained = Pretrained(nn.Identity(), nn.Identity, SetPairs(made, data.device), 0)
        first, again = (_timed(lambda: self.probe(pretrained, data)) for _ in range(2))
        self.seconds = [max(0.0, first - again) / len(data.heldout), again / self.least]


def time_backbone_probes(
    settings: BackboneProbeSettings, size: int, data: RealData, seeds: int, accelerator: Accelerator
) -> Stage:
    """Times probes of frozen networks on a set of `size` images beside as many random ones.

    Probes run side by side, as they will: each core does a trial. Without classes there are none.
    """
    if not data.labelled:
        return Stage("evaluation", 0, 0.0)
    jobs = -(-2 * seeds * len(settings.backbones) // accelerator.num_processes)
    cores = min(torch.get_num_threads(), jobs) if data.device.type == "cpu" else 1
    seconds = 0.0
    least = min(size, _FEW, data.num_classes)
    for number in range(len(settings.backbones)):
        few = replace(settings, views=1)
        trials = [_ProbeTrial(BackboneProbe(few, number), data, least) for _ in range(cores)]
        run_side_by_side([[trial] for trial in trials], lambda: None, data.device)
        heldout, view = (sum(times) / cores for times in zip(*(trial.seconds for trial in trials), strict=True))
        views = seeds * 2 * size * settings.num_views(size)
        seconds += heldout * len(data.heldout) + views * view / cores / accelerator.num_processes
    return Stage("evaluation", jobs, seconds)


@dataclass
class _StepTrial:
    """A student that is pre-trained for some steps; `seconds` of one."""

    tried: Pretraining
    pairs: Pairs
    device: torch.device
    seconds: float = 0.0

    def run(self, done: Callable[[], object]) -> None:
        """Measures a step."""
        candidate, _, use, steps = self.tried
        self.seconds = _step_seconds(candidate, self.pairs, use, steps, self.device)


def time_pretrainings(evaluation: Evaluation, accelerator: Accelerator) -> Stage:
    """Times all pre-trainings that an evaluation has still to do, from some steps of each student on each core.

    Scoring comes on top. All processes call it; students run side by side, as they will. Of fewer than `FEWEST_STEPS`
    in all, which end about as soon as their estimate, none is timed.
    """
    todo, device = evaluation.pretrainings(accelerator), evaluation.datasets[0].device
    if sum(gather_object([sum(each.steps for each in todo)])) < FEWEST_STEPS:
        return Stage("pre-training", 0, 0.0)
    kinds: dict[tuple[str, StudentTrainingSettings], list[Pretraining]] = {}
    for each in todo:
        kinds.setdefault((each.candidate.name, each.use), []).append(each)
    cores = min(torch.get_num_threads(), len(todo)) if device.type == "cpu" else min(1, len(todo))
    seconds = 0.0
    for alike in kinds.values():
        pairs = alike[0].pairs()
        assert pairs is not None  # those without have no steps
        trials = [_StepTrial(alike[0], pairs, device) for _ in range(cores)]
        run_side_by_side([[trial] for trial in trials], lambda: None, device)
        seconds += sum(each.steps for each in alike) * sum(trial.seconds for trial in trials) / cores**2
    shares = gather_object([(len(todo), seconds)])
    return Stage("pre-training", sum(count for count, _ in shares), max(share for _, share in shares))
