"""Networks of matching methods: untrained, trained on the set, or trained on real images.

Which network a step sees, its first weights and its training are functions of the seed and of counters.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Settings, Share, Weight, one_of
from ssdd_hub.data.augment import AUGMENTATIONS
from ssdd_hub.distill.groups import Groups
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import PooledStudent, PoolSettings, StudentPool
from ssdd_hub.errors import Check, InputError
from ssdd_hub.seeds import derive_seed, draw_batch, generator, seeded_training

FRESH, ON_SET, ON_REAL = "fresh", "set", "real"
Kind = Annotated[str, one_of((FRESH, ON_SET, ON_REAL))]
Augmented = Annotated[str, one_of(AUGMENTATIONS)]


@dataclass(frozen=True)
class NetworkSettings(Settings, section="method.args"):
    """Which networks there are, and how they are trained; methods state what their papers do.

    Attributes:
        networks: `fresh`: a new one for each step, never trained. `set`: trained on the set; `real`: on real images.
        task: The loss that they are trained by: `cross_entropy`, to classes; `regression`, the mean squared error to
            targets; `auto`: the former where targets are class labels.
        restart: Outer steps after which a new one begins.
        kept: The newest so many go on, of which each step draws one.
        first: As many are there at the start.
        visits: Networks, different ones, that are trained after each outer step.
        training_steps: SGD steps that each of them then takes.
        training_batch: Images of such a step.
        training_augment: How these are augmented, each in its own way.
        cutmix: Share of these steps in which a rectangle of each image, and as much of its target, is another's (Yun
            et al., ICCV 2019, arXiv 1905.04899).
        learning_rate: Of SGD.
        momentum: Of SGD.
        weight_decay: Of SGD.
    """

    networks: Kind = FRESH
    task: Annotated[str, one_of(("auto", "cross_entropy", "regression"))] = "auto"
    restart: Count = 1
    kept: Count = 1
    first: Count = 1
    visits: Count = 1
    training_steps: Natural = 1
    training_batch: Count = 256
    training_augment: Augmented = "none"
    cutmix: Share = 0.0
    learning_rate: Positive = 0.01
    momentum: Fraction = 0.0
    weight_decay: Weight = 0.0

    def conflicts(self) -> Iterable[Check]:
        """Yields that no more networks start than are kept."""
        yield self.first <= self.kept, f"{self.option('first')} must be at most kept, {self.kept}, got {self.first}"


class Networks:
    """The networks of a method. Number `k` is the `k`-th that begins; the newest `kept` go on.

    Batch norms have the statistics of real images at the start and, where the set trains, after every visit: those of
    few synthetic images say little. So has the released code of DC, which leaves nine tenths of their first values.

    Args:
        settings: Which, and how they are trained.
        problem: The real data, the engine and the seed.
        groups: The real images, and the group of each image.

    Attributes:
        skill: In percent, of each that was trained: the accuracy in its last visit, or of a regression the explained
            share of the targets' variance.
    """

    def __init__(self, settings: NetworkSettings, problem: Problem, groups: Groups) -> None:
        self.settings, self.problem, self.groups = settings, problem, groups
        self.skill: dict[int, float] = {}
        # Pools of one student each, which keep its optimiser and its state.
        self._held: dict[int, StudentPool] = {}
        auto = "cross_entropy" if groups.are_classes else "regression"
        self.task = auto if settings.task == "auto" else settings.task
        if self.task == "cross_entropy" and not groups.are_classes:
            raise InputError(
                "cross_entropy is for targets that are class labels: leave task at auto, or say regression"
            )

    def numbers(self, step: int) -> range:
        """Returns the numbers of the networks that go on at an outer step."""
        settings = self.settings
        if settings.networks == FRESH:
            return range(step, step + 1)
        newest = settings.first - 1 + step // settings.restart
        return range(max(0, newest + 1 - settings.kept), newest + 1)

    def draw(self, step: int) -> int:
        """Returns the number of the network that an outer step sees."""
        numbers = self.numbers(step)
        drawn = torch.randint(
            len(numbers), (), generator=generator(self.problem.network_seed, "network of a step", step)
        )
        return numbers[int(drawn)]

    def get(self, number: int) -> nn.Module:
        """Returns a network in eval mode."""
        return self._student(number).module.eval()

    def train(self, pairs: Pairs, step: int) -> float | None:
        """Trains those that an outer step visits, and go on; returns the mean loss, None where nothing is trained.

        Args:
            pairs: The new set, without a graph.
            step: The outer step that made it.
        """
        settings, seed, going_on = self.settings, self.problem.network_seed, self.numbers(step + 1)
        self._held = {number: held for number, held in self._held.items() if number in going_on}
        self.skill = {number: skill for number, skill in self.skill.items() if number in going_on}
        if settings.networks == FRESH or not settings.training_steps:
            return None
        present = self.numbers(step)
        order = torch.randperm(len(present), generator=generator(seed, "networks to train", step))
        visited = [present[place] for place in order[: settings.visits].tolist()]
        trained = [(number, place) for place, number in enumerate(visited) if number in going_on]
        losses = [self._visit(number, pairs, step, place) for number, place in trained]
        return sum(losses) / len(losses) if losses else None

    def oldest(self) -> nn.Module | None:
        """Returns the network that has been trained for most steps; None where none has been."""
        # Of several, the first one, whatever the order in which they were made or loaded.
        oldest = max(self._held.items(), key=lambda item: (item[1].ages[0], -item[0]), default=None)
        return oldest[1].student(0) if oldest and oldest[1].ages[0] else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of those that were trained; the others are functions of their numbers."""
        held = {str(number): pool.state_dict() for number, pool in self._held.items() if pool.ages[0]}
        return {"held": held, "skill": {str(number): skill for number, skill in self.skill.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._held.clear()
        for number, saved in state["held"].items():
            self._student(int(number))
            self._held[int(number)].load_state_dict(saved)
        self.skill = {int(number): skill for number, skill in state["skill"].items()}

    def for_task(self, pairs: Pairs, numbers: Tensor) -> Pairs:
        """Returns pairs with the targets that the task takes; `numbers (n,)` are their groups."""
        return self.groups.as_classes(pairs, numbers) if self.task == "cross_entropy" else pairs

    def task_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean loss of a head's outputs `(n, D)` to targets of `for_task`."""
        loss = functional.cross_entropy if self.task == "cross_entropy" else functional.mse_loss
        return loss(outputs.to(targets.dtype), targets)

    def _student(self, number: int) -> PooledStudent:
        if number not in self._held:
            settings, engine, seed = self.settings, self.problem.engine, self.problem.network_seed
            sgd = {name: getattr(settings, name) for name in ("learning_rate", "momentum", "weight_decay")}
            alone, own = PoolSettings(size=1, warm_up=False, **sgd), derive_seed(seed, "network", number)
            where: dict[str, Any] = {"device": engine.device, "dtype": engine.dtype}
            held = self._held[number] = StudentPool(self.problem.build_student, alone, own, **where)
            self._set_statistics(held.student(0), "first statistics", number)
        return self._held[number].students[0]

    def _set_statistics(self, module: nn.Module, purpose: str, counter: int) -> None:
        if not any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
            return
        images = self.groups.any_real(self.settings.training_batch, purpose, counter)[0].images
        with seeded_training(module, self.problem.network_seed, f"dropout of {purpose}", counter):
            update_bn([images], module.train())
        # The engine may have a copy of it.
        self.problem.engine.forget()

    def _visit(self, number: int, pairs: Pairs, step: int, place: int) -> float:
        student, settings, found = self._student(number), self.settings, list[Tensor]()
        for batch in self._batches(pairs, step * settings.visits + place):
            student.age += 1
            with seeded_training(student.module, self.problem.network_seed, "dropout", number, student.age):
                found.append(torch.stack(self._step(student, batch)))
        # Once a visit, since a GPU is waited for.
        loss, self.skill[number] = torch.stack(found).mean(0).tolist()
        if settings.networks == ON_SET:
            self._set_statistics(student.module, "statistics", step)
        return float(loss)

    def _batches(self, pairs: Pairs, visit: int) -> Iterator[Pairs]:
        """Yields the batches of a visit, with the targets of the task."""
        settings, seed, on_set = self.settings, self.problem.network_seed, self.settings.networks == ON_SET
        for each in range(visit * settings.training_steps, (visit + 1) * settings.training_steps):
            if on_set:
                size = len(pairs.images)
                rows = draw_batch(size, min(settings.training_batch, size), seed, "training on the set", each)
                batch, numbers = Pairs(*(part[rows.to(part.device)] for part in pairs)), self.groups.of_set[rows]
            else:
                batch, numbers = self.groups.any_real(settings.training_batch, "training on real images", each)
            batch = self.for_task(batch, numbers.to(batch.images.device))
            drawn = generator(seed, "augmentation of training", each)
            images = AUGMENTATIONS[settings.training_augment](batch.images, drawn, False)
            yield cut_mix(Pairs(images, batch.targets), settings.cutmix, drawn)

    def _step(self, student: PooledStudent, batch: Pairs) -> tuple[Tensor, Tensor]:
        """Takes a step of SGD; returns the loss before it, and the skill, in percent."""
        if self.task == "regression":
            loss = self.problem.engine.regression_step(student.module, student.optimizer, batch)
            variance = batch.targets.var(0, correction=0).mean()
            return loss, 100 * (1 - loss / variance).clamp(0, 1).nan_to_num(0)
        outputs = student.module.train()(batch.images)
        loss = self.task_loss(outputs, batch.targets)
        student.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        student.optimizer.step()
        right = outputs.argmax(1) == batch.targets.argmax(1)
        return loss.detach(), 100 * right.to(loss.dtype).mean()


def cut_mix(pairs: Pairs, share: float, drawn: torch.Generator) -> Pairs:
    """Pastes, in a share of all calls, a rectangle of another image of the batch into each, and mixes targets alike.

    The share of the image that is kept is uniform in `[0, 1]` before the rectangle, whose centre is any pixel, is cut
    off at the borders.
    """
    if not share or float(torch.rand((), generator=drawn)) >= share:
        return pairs
    images, side = pairs.images, math.sqrt(1 - float(torch.rand((), generator=drawn)))
    others, bounds = torch.randperm(len(images), generator=drawn).to(images.device), list[slice]()
    for size in images.shape[-2:]:
        centre, length = int(torch.randint(size, (), generator=drawn)), int(size * side)
        bounds.append(slice(max(0, centre - length // 2), min(size, centre + length // 2)))
    inside = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
    inside[bounds[0], bounds[1]] = True
    kept = 1 - float(inside.double().mean())
    targets = kept * pairs.targets + (1 - kept) * pairs.targets[others]
    return Pairs(torch.where(inside, images[others], images), targets)
