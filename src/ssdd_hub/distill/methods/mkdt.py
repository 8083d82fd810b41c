"""MKDT: trajectory matching of students that regress a teacher's targets.

Source: Joshi et al., "Dataset Distillation via Knowledge Distillation: Towards Efficient Self-Supervised Pre-training
of Deep Networks", ICLR 2025, arXiv 2410.02116, and their released code; the loss is that of Cazenavette et al.,
"Dataset Distillation by Matching Training Trajectories", CVPR 2022, arXiv 2203.11932. The gradient in constant memory
is that of Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023, arXiv
2211.10586.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ssdd_hub.bounds import Count, Fraction, Natural, Positive, Weight, one_of
from ssdd_hub.data.augment import augment_dsa
from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.methods.classes import require_classes
from ssdd_hub.distill.methods.trajectories import Experts, ExpertSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.errors import Check
from ssdd_hub.seeds import draw_batch, generator, seeded, seeded_training

TASKS = ("regression", "hard-labels", "soft-labels")


@dataclass(frozen=True)
class MkdtSettings(ExpertSettings, section="method.args"):
    """Settings of MKDT; the defaults are those of the released code for 2 % of CIFAR-100.

    Attributes:
        min_start: The first epoch of an expert that a step starts from.
        max_start: The epoch before which all starts lie. 5 for 5 % of CIFAR-100, with 6 `expert_epochs`.
        first_max_start: `max_start` at the first step, from where it grows; None for no growth.
        growth_steps: Outer steps over which it grows evenly.
        match_epochs: Epochs between the start and the weights that a student is to come to.
        unroll: Steps that a student takes on the set in each outer step; Tiny-ImageNet has 10.
        unroll_batch: Distilled images of such a step: parts of a random order of the set, the last one smaller.
        step_size: First learning rate of these steps, which is learned with the set.
        lr_step_size: SGD's learning rate of the step size; 0 leaves it as it is.
        momentum_step_size: SGD's momentum of the step size.
        gradient: `exact`: of the whole unroll. `constant-memory`: TESLA's, in which the weights that an inner step
            starts from count as constants, although earlier steps made them.
        task: `regression` on the targets. `hard-labels`: cross-entropy with the class of the largest target; the
            targets of the set are not learned. `soft-labels`: as before for experts; students learn the softmax of
            `label_scale` times the targets of the set, which are learned.
        label_scale: Logit of a target of 1.
        learn_targets_below: Targets move only in steps whose loss is below it; None for all steps.
        dsa: Differentiable siamese augmentation of the images of the set, and of those that experts are trained on.
    """

    min_start: Natural = 0
    max_start: Count = 2
    first_max_start: Count | None = None
    growth_steps: Count = 1
    match_epochs: Count = 2
    unroll: Count = 40
    unroll_batch: Count = 256
    step_size: Positive = 0.1
    lr_step_size: Weight = 1e-4
    momentum_step_size: Fraction = 0.5
    gradient: Annotated[str, one_of(("exact", "constant-memory"))] = "exact"
    task: Annotated[str, one_of(TASKS)] = "regression"
    label_scale: Positive = 10.0
    learn_targets_below: Positive | None = None
    dsa: bool = False

    def conflicts(self) -> Iterator[Check]:
        """Yields the rules for epochs."""
        lowest, last = self.first_max_start or self.max_start, self.max_start - 1 + self.match_epochs
        above = (
            f"be above method.args.min_start, {self.min_start}, and at most method.args.max_start, {self.max_start}"
        )
        name = "max_start" if self.first_max_start is None else "first_max_start"
        yield self.min_start < lowest <= self.max_start, f"method.args.{name} must {above}, got {lowest}"
        needed = f"the last start and match_epochs, {last}"
        yield (
            self.expert_epochs >= last,
            f"method.args.expert_epochs must be at least {needed}, got {self.expert_epochs}",
        )


class Episode(NamedTuple):
    """What an outer step draws: an expert, the weights `(P,)` of start and goal, and the rows of each inner step."""

    expert: int
    epoch: int
    start: Tensor
    goal: Tensor
    batches: list[Tensor]


class Mkdt(Method):
    """Trajectory matching on regression to a teacher's features, the labels of the set being learned.

    With `w_e` the weights of an expert after epoch `e`, and `w` those of a student that starts from `w_e` and takes
    `unroll` steps of plain gradient descent on the set, the loss is `|w - w_(e + match_epochs)|^2 / |w_e - w_(e +
    match_epochs)|^2`. Every process computes all of it, or with `own_networks` draws an expert and a start of its own,
    out of experts that all share. Students are in train mode, in the type of the set.

    Experts are trained in turn, and each outer step takes the next of a random order. The released code does so in its
    first version; its later one reads a single file of one expert and keeps to it: `experts: 1`. It trains experts for
    20 epochs, of which no step reads more than the first `max_start - 1 + match_epochs`, on images without
    augmentation (`distiller.augment: false`) in batches of 256, and starts from the images of highest loss (the
    recipe's `init: high_loss`). It moves the set by SGD, with learning rates of 1,000 to 100,000 for images and 1 for
    targets; here `Distiller` moves it, and SGD, with the code's settings, only the step size.

    Attributes:
        step_size: The present learning rate of the inner steps, which a use of the set may take over.
    """

    name = "mkdt"
    citation = "Joshi et al., ICLR 2025, arXiv 2410.02116"
    Settings = MkdtSettings
    stage = "experts"
    has_own_networks = True
    long_steps = True

    def __init__(self, settings: MkdtSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        engine, regression = problem.engine, settings.task == "regression"
        self.experts = Experts(settings, problem, engine.regression_step if regression else _class_step, settings.dsa)
        with seeded(problem.seed, "unrolled student"):
            self._student = problem.build_student().to(engine.device, engine.dtype).train()
        self._parameters = dict(self._student.named_parameters())
        self.step_size = torch.tensor(settings.step_size, dtype=engine.dtype, device=engine.device)
        self._momentum = torch.zeros_like(self.step_size)
        self._slope = torch.zeros_like(self.step_size)
        # Classes have no gradient.
        self.moves_targets = settings.task != "hard-labels"

    @classmethod
    def batches(cls, settings: MkdtSettings, count: int) -> dict[str, int]:
        """See `Method.batches`; the last part of the set may be smaller."""
        return {"--method.args.unroll_batch": count % settings.unroll_batch or min(settings.unroll_batch, count)}

    def prepare(self, pairs: Pairs) -> Iterator[Tensor]:
        """Trains the experts.

        Raises:
            InputError: The task is classification, and the targets of a run are not those of class labels.
        """
        if self.settings.task != "regression" and self.problem.source is not None:
            require_classes(self.problem, f"the task {self.settings.task}", "the method mkdt")
        return self.experts.train()

    def preparation(self) -> int:
        """Returns the number of steps of all experts."""
        return self.experts.num_steps

    def rehearse(self) -> None:
        """Takes untrained experts."""
        self.experts.rehearse()

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the squared distance to the expert's weights, relative to the way that the expert went.

        The whole unroll is in its graph; where the gradient is to be `constant-memory`, without the weights that inner
        steps start from.
        """
        episode = self._draw(step, len(pairs.images))
        loss = self._unrolled(pairs, step, episode)
        if self._leaves_targets(loss):
            loss = self._unrolled(Pairs(pairs.images, pairs.targets.detach()), step, episode)
        return loss

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the loss and its gradients, with the graph of one inner step in memory at a time.

        The exact gradient keeps the weights before each inner step and goes back through them; that in constant memory
        walks the same way a second time instead.
        """
        episode, exact = self._draw(step, len(pairs.images)), self.settings.gradient == "exact"
        watch, rate = self.problem.engine.watch, self.step_size
        with watch.part("inner step"):
            weights, way = episode.start, list[Tensor]()
            for inner, rows in enumerate(episode.batches):
                if exact:
                    way.append(weights)
                weights = weights - rate * self._descent(weights, pairs, rows, step, inner, graph=False)[0]
        length = (episode.start - episode.goal).square().sum()
        loss = (weights - episode.goal).square().sum() / length
        # The gradient in the weights after the inner step that is looked at.
        upstream = 2 * (weights - episode.goal) / length
        found = [torch.zeros_like(part) for part in pairs]
        slope = torch.zeros_like(rate)
        with watch.part("backward"):
            weights = episode.start
            inners = list(enumerate(episode.batches))
            for inner, rows in reversed(inners) if exact else inners:
                weights = way.pop() if exact else weights
                descent, leaves = self._descent(weights, pairs, rows, step, inner, graph=True)
                along = descent @ upstream
                slope -= along.detach()
                parts = leaves if exact else leaves[1:]
                back = torch.autograd.grad(-rate * along, parts, allow_unused=True, materialize_grads=True)
                for sums, part in zip(found, back[-2:], strict=True):
                    sums[rows] += part
                if exact:
                    upstream = upstream + back[0]
                else:
                    weights = weights - rate * descent.detach()
        still = self._leaves_targets(loss)
        if still:
            found[1].zero_()
        moving = torch.full_like(slope, not still)
        if self.problem.world > 1:
            slope, moving = reduce(torch.stack([slope, moving]), "mean").unbind()
        self._slope = slope
        if self.settings.learn_targets_below is not None:
            # Of several processes with own networks, one is enough.
            self.moves_targets = bool(moving)
        return (loss, *found)

    def after_step(self, pairs: Pairs, step: int) -> dict[str, Any]:
        """Moves the step size by its gradient of the same step; logs the new one, the expert and its first epoch."""
        expert, epoch = self._start(step)
        self._momentum = self.settings.momentum_step_size * self._momentum + self._slope
        self.step_size = self.step_size - self.settings.lr_step_size * self._momentum
        return {"step_size": self.step_size, "expert": expert, "epoch": epoch}

    def network_of(self, record: Mapping[str, Any]) -> str:
        """Returns the expert of a step, and where it started; or which one was trained."""
        if record["stage"] == self.stage:
            return f"expert {(record['step'] - 1) // (self.experts.num_steps // self.settings.experts)}"
        return f"a student from expert {record['expert']} after epoch {record['epoch']}"

    def learned(self) -> dict[str, float]:
        """Returns the step size, the learning rate of students, where it is learned, and the scale of soft labels."""
        rate = {"learning_rate": self.step_size.item()} if self.settings.lr_step_size else {}
        return {**rate, **({"label_scale": self.settings.label_scale} if self.settings.task == "soft-labels" else {})}

    def state_dict(self) -> dict[str, Any]:
        """Returns the step size with its momentum, and the experts where they are in no file."""
        return {"step_size": self.step_size, "momentum": self._momentum, "experts": self.experts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.step_size, self._momentum = (state[name].to(self.step_size) for name in ("step_size", "momentum"))
        self.experts.load_state_dict(state["experts"])

    def _start(self, step: int) -> tuple[int, int]:
        """Returns the expert of a step and the epoch that a student starts from."""
        settings, seed = self.settings, self.problem.network_seed
        expert = int(draw_batch(settings.experts, 1, seed, "expert of a step", step))
        end = settings.max_start
        if settings.first_max_start is not None:
            grown = min(1.0, step / settings.growth_steps) * (end - settings.first_max_start)
            end = settings.first_max_start + int(grown)
        return expert, int(torch.randint(settings.min_start, end, (), generator=generator(seed, "start", step)))

    def _draw(self, step: int, count: int) -> Episode:
        settings, seed = self.settings, self.problem.network_seed
        expert, epoch = self._start(step)
        start, goal = (self.experts.weights(expert, at) for at in (epoch, epoch + settings.match_epochs))
        batches = list[Tensor]()
        while len(batches) < settings.unroll:
            order = torch.randperm(count, generator=generator(seed, "order of the set", step, len(batches)))
            batches += torch.split(order.to(start.device), settings.unroll_batch)
        return Episode(expert, epoch, start, goal, batches[: settings.unroll])

    def _leaves_targets(self, loss: Tensor) -> bool:
        limit = self.settings.learn_targets_below
        return limit is not None and loss.item() >= limit

    def _unrolled(self, pairs: Pairs, step: int, episode: Episode) -> Tensor:
        weights = episode.start.detach().requires_grad_()
        for inner, rows in enumerate(episode.batches):
            before = weights if self.settings.gradient == "exact" else weights.detach().requires_grad_()
            error = self._error(before, Pairs(*(part[rows] for part in pairs)), step, inner)
            (descent,) = torch.autograd.grad(error, before, create_graph=True)
            weights = weights - self.step_size * descent
        return (weights - episode.goal).square().sum() / (episode.start - episode.goal).square().sum()

    def _descent(
        self, weights: Tensor, pairs: Pairs, rows: Tensor, step: int, inner: int, graph: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the gradient `(P,)` of an inner step, and what it is differentiable in: weights, images, targets."""
        batch = Pairs(*(part[rows] for part in pairs))
        leaves = (weights.detach().requires_grad_(), *(part.detach().requires_grad_(graph) for part in batch))
        error = self._error(leaves[0], Pairs(*leaves[1:]), step, inner)
        return torch.autograd.grad(error, leaves[0], create_graph=graph)[0], leaves

    def _error(self, weights: Tensor, batch: Pairs, step: int, inner: int) -> Tensor:
        """Returns the loss of a student with given weights on a batch of the set."""
        images, targets = batch
        if self.settings.dsa:
            images = augment_dsa(images, generator(self.problem.network_seed, "augmentation of the set", step, inner))
        parts = torch.split(weights, [parameter.numel() for parameter in self._parameters.values()])
        state = {
            name: part.view(parameter.shape)
            for part, (name, parameter) in zip(parts, self._parameters.items(), strict=True)
        }
        # Copies, because running statistics would move; nothing in train mode reads them.
        state |= {name: buffer.clone() for name, buffer in self._student.named_buffers()}
        # A walk back through the unroll must meet the same draws.
        with seeded_training(self._student, self.problem.network_seed, "dropout of the unroll", step, inner):
            outputs = functional_call(self._student, state, (images,))
        if self.settings.task == "regression":
            return functional.mse_loss(outputs, targets)
        if self.settings.task == "hard-labels":
            return functional.cross_entropy(outputs, targets.argmax(1))
        return functional.cross_entropy(outputs, (self.settings.label_scale * targets).softmax(1))


def _class_step(student: nn.Module, optimizer: torch.optim.Optimizer, pairs: Pairs) -> Tensor:
    """Takes a step of an expert on the cross-entropy with the class of the largest target; returns its loss before."""
    student.train()
    loss = functional.cross_entropy(student(pairs.images), pairs.targets.argmax(1))
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()
