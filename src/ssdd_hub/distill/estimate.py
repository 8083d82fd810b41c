"""Time estimate of a distillation, from some steps of a copy that is thrown away."""

from collections.abc import Iterator

from accelerate.utils import gather_object

from ssdd_hub.distill.distiller import Distiller
from ssdd_hub.runs.estimate import Stage, time_steps
from ssdd_hub.runs.folder import RunFolder


def time_distillation(copy: Distiller, run: RunFolder) -> Iterator[Stage]:
    """Times the steps that warm-up and distillation of a run still have; the copy has done none, and is spoiled."""
    saved, accelerator = run.checkpoints.newest_step(), copy.accelerator
    copy.method.rehearse()
    first, left = copy.warm_up(), copy.settings.steps - (saved or 0)
    steps = 0 if saved is not None else copy.method.preparation()
    # Students of each process have other first ages; the others wait for the oldest.
    counts = gather_object([steps])
    yield Stage("warm-up", steps, max(counts) * time_steps(lambda: next(first), min(counts), accelerator))
    each = time_steps(copy.step, left, accelerator)
    yield Stage("distillation", left, left * each, lambda steps: {"distiller.steps": steps})
