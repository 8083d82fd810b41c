"""The outer step of a distillation: a method's gradients move a parameterisation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, cast, overload

import torch
from accelerate import Accelerator
from timm.optim import Lamb
from torch import Tensor

from ssdd_hub.bounds import Count, Natural, Positive, Settings, Share, Weight, one_of
from ssdd_hub.distill.batches import Batches
from ssdd_hub.distill.engine.base import Engine, EngineSettings, Precision
from ssdd_hub.distill.engine.build import build_engine
from ssdd_hub.distill.engine.memory import MicroBatches
from ssdd_hub.distill.engine.timing import Stopwatch
from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.methods.krr_st import KrrSt, KrrStSettings
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.base import LearningRates, Parameterisation
from ssdd_hub.distill.parameterisations.pixels import Pixels
from ssdd_hub.distill.pool import StudentPool
from ssdd_hub.errors import require


@dataclass(frozen=True)
class DistillerSettings(Settings, section="distiller"):
    """The outer problem; the defaults are those of Lee et al. (ICLR 2024) on CIFAR-100.

    Attributes:
        num_images: Distilled images `M`.
        steps: Outer steps.
        batch_size: Real images `B` per outer step, over all processes.
        set_batch: Distilled images that a step sees, drawn anew for each, so that its time does not grow with `M`;
            None for all. Only of methods by kernel regression.
        own_networks: Each of several processes has networks of its own, such as a pool of students, and sees its part
            of the real batch through them: a gradient is the mean over as many networks as there are processes, and
            the run keeps their number. Otherwise all have the same networks, and do what one process does.
        optimizer: Of the outer steps. `lamb`: each step is as long as the learning rate times the norm of the images,
            or of the targets, as a whole. `sgd`: with the momentum 0.5 of DC, DM, MTT and what followed them, whose
            learning rates are from 0.005 to 1e5.
        lr_images: First learning rate of the images.
        lr_targets: First learning rate of the targets.
        final_lr: The share of the first learning rates that the linear decay ends at.
        ridge: Regularisation of the regression relative to the trace of its kernel. Much less than the default may
            leave a float32 kernel that cannot be factorised on a GPU.
        inner_steps: Inner steps of the drawn student after each outer step.
        augment: Crop and flip the real images; see `targets.views` for where their targets come from.
        pixel_space: `normalised`: the images start as normalised real images. `raw`: as in the authors' released code,
            they start as pixels in `[0, 1]` although real images are normalised.
        kernel_precision: Type in which the kernel is built and solved.
        precision: Type of images, targets and students. `float64` is for comparisons, not for speed.
        micro_batch: Images per forward pass of the outer step; None for what is quick on the device. The result is the
            same but for rounding.
        memory_budget: GiB for the activations of distilled images; beyond it they are recomputed in the backward pass.
            None for half of the memory that is free at the start.
        compile: Compile the networks with torch.compile: quicker from some hundred steps on, after a minute or so. On
            a GPU the launches of a step are also recorded and replayed as one.
        winograd: On the CPU in full precision, compute the 3x3 convolutions of students by Winograd's algorithm where
            they have 128 channels or more: quicker, and in float32 rounded by a few millionths.
        checkpointing: In the students' own steps, on all images of the set at once, keep only the activations between
            blocks, and compute the others again in the backward pass: less memory, and one more forward pass.
            Of timm models that have it; these steps are then neither compiled nor by Winograd.
    """

    num_images: Count = 1000
    steps: Natural = 160_000
    batch_size: Count = 1024
    set_batch: Count | None = None
    own_networks: bool = False
    optimizer: Annotated[str, one_of(("adamw", "lamb", "sgd"))] = "adamw"
    lr_images: Weight = 1e-4
    lr_targets: Weight = 1e-4
    final_lr: Share = 1e-3
    # Without it the system is singular when two images are alike, or when M is above F + 1.
    ridge: Positive = 1e-6
    inner_steps: Count = 1
    augment: bool = True
    pixel_space: Annotated[str, one_of(("normalised", "raw"))] = "normalised"
    kernel_precision: Precision = "float32"
    precision: Precision = "float32"
    micro_batch: Count | None = None
    memory_budget: Positive | None = None
    compile: bool = False
    winograd: bool = True
    checkpointing: bool = False

    def computing(self) -> EngineSettings:
        """Returns the settings of how a step is computed."""
        names = [field.name for field in fields(EngineSettings) if field.name != "kind"]
        return EngineSettings(**{name: getattr(self, name) for name in names})

    def shared(self) -> dict[str, Any]:
        """Returns the settings that methods and parameterisations take over where they have one of the same name."""
        names = ("ridge", "inner_steps", "set_batch", "lr_images", "lr_targets")
        return {name: getattr(self, name) for name in names}


class Distiller:
    """The state of a distillation and its outer step.

    Every process holds the same parameterisation and the same state of the method; the real batch is split, and the
    gradients are averaged, which is the mathematics of one process. With `own_networks` the state of the method is
    another one on each process, and the parameterisation is still the same.

    `Distiller(images, targets, pool, batches, settings, accelerator)` is short for KRR-ST on pixels, with the first
    images `(M, C, H, W)` in the students' pixel space, the first targets `(M, D)`, online students on
    `accelerator.device`, and the real data.

    Args:
        parameterisation: What is learned.
        method: The method, which gives loss and gradients.
        settings: See `DistillerSettings`; here count the steps, the batch size and the decay of the learning rates.
        accelerator: Device, processes and mixed precision.

    Attributes:
        optimizer: That of the settings.
        outer_step: Outer steps done.
    """

    @overload
    def __init__(
        self, parameterisation: Parameterisation, method: Method, settings: DistillerSettings, accelerator: Accelerator
    ) -> None: ...

    @overload
    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        pool: StudentPool,
        batches: Batches,
        settings: DistillerSettings,
        accelerator: Accelerator,
    ) -> None: ...

    def __init__(self, *parts: Any, **named: Any) -> None:
        if len(parts) + len(named) > 4:
            self._set_up(*_krr_st_on_pixels(*parts, **named))
        else:
            self._set_up(*parts, **named)
        self.outer_step = 0
        self._build_optimizer()

    def _set_up(
        self, parameterisation: Parameterisation, method: Method, settings: DistillerSettings, accelerator: Accelerator
    ) -> None:
        processes, size = accelerator.num_processes, settings.batch_size
        problem = f"distiller.batch_size must be at least the number of processes ({processes}), got {size}"
        # A pool that is given is the same on all processes.
        other = "distiller.own_networks needs a method that has them: build it for a Problem(..., own_networks=True)"
        own = method.problem.own_networks or not settings.own_networks
        whole = parameterisation.steps_check(settings.steps) if settings.steps else (True, "")
        require((size >= processes, problem), (own, other), whole)
        self.parameterisation, self.method = parameterisation, method
        self.settings, self.accelerator = settings, accelerator

    @property
    def engine(self) -> Engine:
        """The engine of the method."""
        return self.method.problem.engine

    @property
    def own_state(self) -> tuple[str, ...]:
        """Names of the parts of `state_dict` that are not the same on all processes."""
        return ("method", "engine") if self.method.problem.own_networks else ()

    @property
    def images(self) -> Tensor:
        """The images as they are now, `(M, C, H, W)`; of pixels the parameter itself."""
        return self.rendered().images

    @property
    def targets(self) -> Tensor:
        """The targets as they are now, `(M, D)`; of pixels the parameter itself."""
        return self.rendered().targets

    @property
    def pool(self) -> StudentPool:
        """The online students of KRR-ST."""
        return cast(KrrSt, self.method).pool

    @property
    def watch(self) -> Stopwatch:
        """Seconds of each part of the steps."""
        return self.engine.watch

    @property
    def parts(self) -> MicroBatches | None:
        """How images pass the students, once the first outer step has planned it."""
        return self.engine.parts

    def disable_cuda_graphs(self) -> None:
        """Replays no CUDA graph from now on, so that the parts of a step can be timed on a GPU."""
        self.engine.launch_one_by_one()

    def warm_up(self) -> Iterator[Tensor | None]:
        """Prepares the method, once, before the first outer step; yields as `Method.prepare` does."""
        return self.method.prepare(self._pairs())

    def step(self) -> dict[str, Any]:
        """Does one outer step: the set moves along the method's gradients, and the method follows.

        Returns:
            `loss`, a scalar tensor, what the method logs of the step, the `penalty` of the parameterisation, where it
            has one, the learning rate `lr` of the images, and `finite`, a scalar tensor: the sum of loss and
            gradients, which is finite where these are.
        """
        step = self.outer_step
        if self.parameterisation.grow(step):
            self._build_optimizer()
        decay = self._set_learning_rates(step)
        rows = self.method.rows(len(self.parameterisation), step)
        if rows is not None:
            rows = rows.to(self.engine.device)
        loss, *gradients = self._mean(self.method.gradients(self._pairs(rows), step))
        with self.watch.part("update"):
            # Read by the loop when it writes its log, so that no step waits for a GPU.
            finite = sum((part.sum() for part in gradients), start=loss)
            penalty = self._backward(gradients, rows)
            self.optimizer.step()
            self.optimizer.zero_grad()
        logged = self.method.after_step(self._pairs(rows), step)
        self.outer_step += 1
        if penalty is not None:
            logged = {**logged, "penalty": penalty}
        return {"loss": loss, **logged, "lr": self._rates[0] * decay, "finite": finite}

    def state_dict(self) -> dict[str, Any]:
        """Returns all state, for `checkpoints.save_tree`."""
        return {
            "outer_step": self.outer_step,
            "parameterisation": dict(self.parameterisation.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "engine": self.engine.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; the run goes on exactly as the unbroken one would.

        Raises:
            InputError: The state belongs to a set of another size.
        """
        if "images" in state:
            state = _upgrade(state)
        self.parameterisation.load_state_dict(state["parameterisation"])
        # It may have grown.
        self._build_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        self.engine.load_state_dict(state["engine"])
        self.outer_step = state["outer_step"]

    def rendered(self, rows: Tensor | None = None) -> Pairs:
        """Returns the pairs as they are now, all or those at indices `(n,)`, with the graph of the parameters."""
        return cast(Pairs, self.parameterisation(rows))

    def _pairs(self, rows: Tensor | None = None) -> Pairs:
        with torch.no_grad():
            return self.rendered(rows).detached()

    def _mean(self, found: tuple[Tensor, ...]) -> list[Tensor]:
        """Returns loss and gradients averaged over processes."""
        if self.accelerator.num_processes == 1:
            return list(found)
        return [self.accelerator.reduce(tensor, "mean") for tensor in found]

    def _backward(self, gradients: list[Tensor], rows: Tensor | None) -> Tensor | None:
        """Takes gradients in images and targets on to the parameters, with those of the penalty, which it returns."""
        pairs, moved = self.rendered(rows), (True, self.method.moves_targets)
        # What a parameterisation does not learn has no graph. Optimisers leave what has no gradient alone.
        learned = [
            (part, gradient.contiguous())
            for part, gradient, moves in zip(pairs, gradients, moved, strict=True)
            if part.requires_grad and moves
        ]
        roots, given = [part for part, _ in learned], [gradient for _, gradient in learned]
        penalty = self.parameterisation.penalty(rows, self.method.moves_targets)
        # Without steps of the coefficients it is that of the targets alone.
        if penalty is not None and penalty.requires_grad:
            roots, given = [*roots, penalty], [*given, torch.ones_like(penalty)]
        torch.autograd.backward(roots, given)
        return None if penalty is None else penalty.detach()

    def _build_optimizer(self) -> None:
        groups = self.parameterisation.groups()
        self._rates = [group["lr"] for group in groups]
        if self.settings.optimizer == "lamb":
            # By default timm clips gradients, and scales no step of what has no weight decay.
            self.optimizer = Lamb(groups, weight_decay=0.0, max_grad_norm=None, always_adapt=True)
            return
        if self.settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, momentum=0.5)
            return
        # On the CPU the fused one is wrong where a gradient's layout is not its parameter's.
        fused = self.accelerator.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=fused)

    def _set_learning_rates(self, step: int) -> float:
        """Sets the rates of a linear decay from 1 to `final_lr` over all steps; returns the present share."""
        decay = 1 + (self.settings.final_lr - 1) * step / self.settings.steps
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * decay
        return decay


def _krr_st_on_pixels(
    images: Tensor,
    targets: Tensor,
    pool: StudentPool,
    batches: Batches,
    settings: DistillerSettings,
    accelerator: Accelerator,
) -> tuple[Parameterisation, Method, DistillerSettings, Accelerator]:
    engine = build_engine(settings.computing(), accelerator)
    batches, processes = (
        engine.prefetch(batches, settings.steps),
        (accelerator.process_index, accelerator.num_processes),
    )
    problem = Problem(batches, pool.build, engine, settings.batch_size, pool.seed, None, *processes)
    chosen = KrrStSettings(settings.ridge, settings.inner_steps, pool.settings, settings.set_batch)
    method = KrrSt(chosen, problem, pool)
    pairs = Pairs(images, targets).to(engine.device, engine.dtype)
    pixels = Pixels.start(pairs, LearningRates(settings.lr_images, settings.lr_targets))
    return pixels, method, settings, accelerator


def _upgrade(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the state of a checkpoint that was written when KRR-ST on pixels was the only method."""
    return {
        "outer_step": state["outer_step"],
        "parameterisation": {name: state[name] for name in ("images", "targets")},
        "optimizer": state["optimizer"],
        "method": {"pool": state["pool"]},
        "engine": {"parts": state.get("parts")},
    }
