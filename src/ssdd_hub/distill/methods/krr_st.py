"""KRR-ST: a kernel ridge regression on the features of online students predicts the teacher's features.

Source: Lee et al., "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024, arXiv 2310.06511,
algorithm 1. Where the released code differs from it, as in the pool's renewal (`distill/pool.py`) and in the space of
the pixels, each difference is a setting: `recipes/released_code.md`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from ssdd_hub.bounds import Count, Positive, Settings
from ssdd_hub.distill.engine.eager import krr_loss
from ssdd_hub.distill.method import Method, Problem
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.pool import PoolSettings, StudentPool


@dataclass(frozen=True)
class KrrStSettings(Settings, section="method.args"):
    """Settings of KRR-ST; the defaults are the paper's on CIFAR-100.

    Attributes:
        ridge: Regularisation of the regression relative to the trace of its kernel.
        inner_steps: Inner steps of the drawn student after each outer step.
        pool: The online students.
        set_batch: Distilled images of each outer step and the inner steps after it, and of each step of the warm-up;
            None for all, as in the paper.
    """

    ridge: Positive = 1e-6
    inner_steps: Count = 1
    pool: PoolSettings = field(default_factory=PoolSettings)
    set_batch: Count | None = None


class KrrSt(Method):
    """Draws a student of the pool, fits the regression on the set through it, and trains the student on the new set.

    The students of a given pool then take their steps by the problem's engine.
    """

    name = "krr_st"
    citation = "Lee et al., ICLR 2024, arXiv 2310.06511"
    Settings = KrrStSettings
    stage = "pool"
    has_own_networks = True

    def __init__(self, settings: KrrStSettings, problem: Problem, pool: StudentPool | None = None) -> None:
        super().__init__(settings, problem)
        engine = problem.engine
        if pool is None:
            where: dict[str, Any] = {"device": engine.device, "dtype": engine.dtype}
            pool = StudentPool(problem.build_student, settings.pool, problem.network_seed, **where)
        pool.step = engine.regression_step
        self.pool = pool
        self._drawn: tuple[int, int] | None = None

    @classmethod
    def batches(cls, settings: KrrStSettings, count: int) -> dict[str, int]:
        """See `Method.batches`."""
        return {} if settings.set_batch is None else {"--distiller.set-batch": min(settings.set_batch, count)}

    def prepare(self, pairs: Pairs) -> Iterator[Tensor]:
        """Trains the first students to their first ages."""
        return self.pool.warm_up(*pairs, self.settings.set_batch)

    def preparation(self) -> int:
        """Returns the sum of the first ages."""
        return sum(self.pool.first_ages())

    def loss(self, pairs: Pairs, step: int) -> Tensor:
        """Returns the outer loss of the student that the step draws."""
        student, real = self.pool.student(self._draw(step)), self.problem.batch(step)
        loss = krr_loss(self.problem.engine, student, pairs, real, self.settings.ridge)
        return loss * self.problem.share(real)

    def gradients(self, pairs: Pairs, step: int) -> tuple[Tensor, ...]:
        """Returns the outer loss and its gradients, computed in parts that fit the memory."""
        student, real = self.pool.student(self._draw(step)), self.problem.batch(step)
        found = self.problem.engine.krr_gradients(student, pairs, real, self.settings.ridge)
        share = self.problem.share(real)
        return found if share == 1 else tuple(part * share for part in found)

    def after_step(self, pairs: Pairs, step: int) -> dict[str, Any]:
        """Trains the drawn student on the new set; logs `inner_loss`, `student`, and `age` and `generation` before."""
        slot = self._draw(step)
        age, generation = self.pool.ages[slot], self.pool.students[slot].generation
        with self.problem.engine.watch.part("inner step"):
            for _ in range(self.settings.inner_steps):
                inner_loss = self.pool.advance(slot, *pairs)
        return {"inner_loss": inner_loss, "student": slot, "age": age, "generation": generation}

    def network_of(self, record: Mapping[str, Any]) -> str:
        """Returns the slot, age and generation of a student; of the first ones in the order of their training."""
        if record["stage"] == self.stage:
            ages = self.pool.first_ages()
            slot, last = next(each for each in enumerate(accumulate(ages)) if each[1] >= record["step"])
            record = {"student": slot, "age": ages[slot] - 1 - last + record["step"], "generation": 0}
        return "student {student} of the pool (generation {generation}, age {age})".format_map(record)

    def real_rows(self, step: int) -> Tensor | None:
        """Returns the rows of the batch."""
        return self.problem.batch_rows(step)

    def judge(self) -> nn.Module:
        """Returns the oldest student of the pool: young ones fit less well, whatever the set is."""
        return max(self.pool.students, key=lambda student: student.age).module

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the pool."""
        return {"pool": self.pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.pool.load_state_dict(state["pool"])
        self.problem.engine.forget()

    def _draw(self, step: int) -> int:
        """Returns the slot of a step, which is drawn once: each draw costs a generator."""
        if self._drawn is None or self._drawn[0] != step:
            self._drawn = step, self.pool.draw(step)
        return self._drawn[1]
