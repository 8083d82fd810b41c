"""Trajectories of experts: the weights of networks after each epoch of a training on real images."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import wait_for_everyone
from torch import Tensor, nn

from ssdd_hub.bounds import Count, Fraction, Positive, Settings, Weight
from ssdd_hub.data.augment import augment_dsa
from ssdd_hub.distill.method import Problem
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import InnerStep, PoolSettings, StudentPool
from ssdd_hub.errors import InputError
from ssdd_hub.files import remove_abandoned
from ssdd_hub.runs.checkpoints import load_tree, save_tree
from ssdd_hub.seeds import derive_seed, generator

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertSettings(Settings, section="method.args"):
    """How experts are trained: by SGD with a constant learning rate, on batches of `distiller.batch_size` real images.

    Attributes:
        experts: Trained networks.
        expert_epochs: Epochs of each; its weights before the first and after each of them are kept.
        expert_steps: Steps of an epoch; None for one pass over the source.
        expert_learning_rate: SGD's.
        expert_momentum: SGD's.
        expert_weight_decay: SGD's.
    """

    experts: Count = 100
    expert_epochs: Count = 3
    expert_steps: Count | None = None
    expert_learning_rate: Positive = 0.1
    expert_momentum: Fraction = 0.9
    expert_weight_decay: Weight = 1e-4


def flatten(student: nn.Module) -> Tensor:
    """Returns a copy of the parameters of a student in their order, `(P,)`."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in student.parameters()])


class Experts:
    """Experts by number, each with `expert_epochs + 1` vectors of weights.

    With a folder in the problem they are files there: training goes on after the last whole epoch in it, exactly, and
    only the weights that a step needs are in memory. Without one they are in memory, and part of the state. Several
    processes train the same experts, and read those of the first where there is a folder.

    Args:
        settings: See `ExpertSettings`.
        problem: The real batches; the folder.
        step: Takes a training step.
        dsa: Change the images by differentiable siamese augmentation.

    Raises:
        InputError: An epoch has no length: neither `expert_steps` nor the problem's source is given.
    """

    def __init__(self, settings: ExpertSettings, problem: Problem, step: InnerStep, dsa: bool) -> None:
        self.settings, self.problem, self._step, self._dsa = settings, problem, step, dsa
        if settings.expert_steps is None and problem.source is None:
            raise InputError("experts pass a source of real images: give one to the problem, or set expert_steps")
        images = 0 if problem.source is None else len(problem.source.bank)
        self.epoch_steps = settings.expert_steps or math.ceil(images / problem.batch_size)
        self._kept: dict[int, dict[int, dict[str, Tensor]]] = {}
        self._rehearsed = False

    @property
    def num_steps(self) -> int:
        """Training steps of all experts."""
        return self.settings.experts * self.settings.expert_epochs * self.epoch_steps

    def rehearse(self) -> None:
        """Gives untrained weights from here on, for steps that are only timed."""
        self._rehearsed = True

    def weights(self, expert: int, epoch: int) -> Tensor:
        """Returns the weights `(P,)` of an expert after an epoch, on the device of the students.

        Raises:
            InputError: They are not there, or their file is damaged.
        """
        device = self.problem.engine.device
        if self._rehearsed:
            return flatten(self._pool(expert, epoch).student(0))
        try:
            return self._read(expert, epoch)["weights"].to(device)
        except (InputError, KeyError, FileNotFoundError) as error:
            raise InputError(
                f"the weights of expert {expert} after epoch {epoch} cannot be read ({error}): train the experts by "
                "Distiller.warm_up; in a run folder, remove checkpoints/distiller and start again, and only those "
                "whose files are not whole are trained"
            ) from error

    def train(self) -> Iterator[Tensor]:
        """Trains the experts, one after another; yields the loss of each step, of those of an earlier start too.

        Raises:
            InputError: An expert diverges.
        """
        saved = self._saved_training()
        # Nobody writes before all have read.
        self._wait()
        for expert in range(self.settings.experts):
            yield from self._train(expert, saved if saved and saved["expert"] == expert else None)
        if self._writes:
            self._training_file.unlink(missing_ok=True)
            remove_abandoned(self._folder)

    def state_dict(self) -> dict[int, Any]:
        """Returns the weights that are in no file."""
        return self._kept

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._kept = dict(state)

    def _train(self, expert: int, saved: Mapping[str, Any] | None) -> Iterator[Tensor]:
        last, done = self.settings.expert_epochs, self._losses_of_whole_epochs(expert)
        if len(done) > last:
            for each in done:
                yield from each
            return
        pool, first = self._pool(expert), 0
        if saved and saved["epoch"] < len(done):
            first = saved["epoch"]
            pool.load_state_dict(saved["pool"])
            self.problem.engine.forget()
        else:
            self._keep(expert, 0, pool, [])
        for each in done[: first + 1]:
            yield from each
        for epoch in range(first + 1, last + 1):
            losses = list[Tensor]()
            for step in range(self.epoch_steps):
                number = (expert * last + epoch - 1) * self.epoch_steps + step
                loss = pool.advance(0, *self._batch(number))
                losses.append(cast(Tensor, loss))
                yield losses[-1]
            self._keep(expert, epoch, pool, losses)

    def _pool(self, expert: int, epoch: int = 0) -> StudentPool:
        """Returns an expert before its training, the only student of a pool, which trains it and keeps its state."""
        chosen, problem = self.settings, self.problem
        settings = PoolSettings(
            size=1,
            max_age=chosen.expert_epochs * self.epoch_steps + 1,
            warm_up=False,
            learning_rate=chosen.expert_learning_rate,
            momentum=chosen.expert_momentum,
            weight_decay=chosen.expert_weight_decay,
        )
        where: dict[str, Any] = {"device": problem.engine.device, "dtype": problem.engine.dtype}
        seed = derive_seed(problem.seed, "expert", expert, epoch)
        return StudentPool(problem.build_student, settings, seed, **where, step=self._step)

    def _batch(self, number: int) -> Pairs:
        """Returns the batch of a training step, counted over all experts, so that each has an order of its own."""
        real = self.problem.whole_batch(number)
        if not self._dsa:
            return real
        drawn = generator(self.problem.seed, "augmentation of experts", number)
        return Pairs(augment_dsa(real.images, drawn), real.targets)

    # What is kept

    @property
    def _folder(self) -> Path:
        return cast(Path, self.problem.folder)

    @property
    def _writes(self) -> bool:
        return self.problem.folder is not None and self.problem.rank == 0

    @property
    def _training_file(self) -> Path:
        return self._folder / "training.safetensors"

    def _file(self, expert: int, epoch: int) -> Path:
        return self._folder / f"expert-{expert:05d}-{epoch:03d}.safetensors"

    def _keep(self, expert: int, epoch: int, pool: StudentPool, losses: list[Tensor]) -> None:
        weights = flatten(pool.student(0))
        snapshot = {"weights": weights.cpu(), "losses": torch.stack(losses).cpu() if losses else weights[:0].cpu()}
        if not (snapshot["losses"].isfinite().all() and weights.isfinite().all()):
            raise InputError(
                f"expert {expert} diverges in epoch {epoch}: lower the method's expert_learning_rate, or standardise "
                "the targets, in another --output"
            )
        if self.problem.folder is None:
            self._kept.setdefault(expert, {})[epoch] = snapshot
            return
        if self._writes:
            save_tree(self._file(expert, epoch), snapshot)
            if epoch < self.settings.expert_epochs:
                state = {"expert": expert, "epoch": epoch, "pool": pool.state_dict()}
                save_tree(self._training_file, state)
        self._wait()

    def _read(self, expert: int, epoch: int) -> dict[str, Tensor]:
        if self.problem.folder is None:
            return self._kept[expert][epoch]
        snapshot: dict[str, Tensor] = load_tree(self._file(expert, epoch))
        return snapshot

    def _losses_of_whole_epochs(self, expert: int) -> list[Tensor]:
        """Returns the losses of the epochs, from the first on, whose weights can be read; epoch 0 has none."""
        found = list[Tensor]()
        for epoch in range(self.settings.expert_epochs + 1):
            try:
                found.append(self._read(expert, epoch)["losses"])
            except (KeyError, FileNotFoundError):
                break
            except InputError as error:
                _LOG.warning("%s; the expert is trained again", str(error).partition(": remove it")[0])
                break
        return found

    def _saved_training(self) -> dict[str, Any] | None:
        if self.problem.folder is None or not self._training_file.exists():
            return None
        try:
            saved: dict[str, Any] = load_tree(self._training_file)
        except InputError:
            return None
        return saved

    def _wait(self) -> None:
        if self.problem.world > 1 and self.problem.folder is not None:
            wait_for_everyone()
