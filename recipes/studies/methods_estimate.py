"""How long a comparison of methods will take, from some steps of each method and of students."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill import DistillConfig, build_distiller
from evaluate import EvaluateConfig
from ssdd_hub import PixelSpace
from ssdd_hub.data import ImageBank, draw_heldout, load_images
from ssdd_hub.estimates import time_distilling
from ssdd_hub.evaluation import RealData, StudentEntry
from ssdd_hub.evaluation.estimate import time_evaluation
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.launch import keep_freed_memory
from ssdd_hub.seeds import generators_kept
from ssdd_hub.settings import to_dict
from ssdd_hub.targets.labels import LABELS, with_classes
from studies.methods_jobs import Jobs, Plan

_WIDTH = 128  # of targets, where it is not known yet; it hardly matters
Banks = tuple[ImageBank, ImageBank]


def estimate(
    plans: Mapping[Plan, DistillConfig],
    evaluations: Mapping[str, EvaluateConfig],
    jobs: Jobs,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Times some steps of each method at each budget and of students, and prints the seconds of all that is left.

    They are those of all cores for one set after another. Runs of fewer than 100 steps count as nothing.

    Returns:
        `seconds` of all; `sets`, of each method and budget the number that is `left` and the `seconds` of one, None
        where it fails; `scores`, the seconds of the evaluations.
    """
    loaded = dict[str, Banks]()
    rows, scores = list[dict[str, Any]](), 0.0
    kinds = {(plan.method, plan.budget): plan for plan in reversed([*plans])}
    for method, budget in dict.fromkeys((plan.method, plan.budget) for plan in plans):
        left = [plan for plan in plans if (plan.method, plan.budget) == (method, budget) and not jobs.is_made(plan)]
        seconds: float | None = 0.0
        if left:
            try:
                seconds = _distilling(plans[left[0]], loaded, accelerator)
            # A method that fails is told of when its turn comes, and the others are made.
            except Exception as error:
                seconds = None
                accelerator.print(f"{method}, {budget} cannot be timed: {error}")
        rows.append({"method": method, "budget": budget, "left": len(left), "seconds": seconds})
    if any(row["left"] for row in rows):
        settings = plans[kinds[rows[0]["method"], rows[0]["budget"]]]
        each = [_scoring(asked, settings, len(kinds), loaded, accelerator) for asked in evaluations.values()]
        scores = sum(each) * len({plan.seed for plan in plans})
    # Methods may have taken much, and the sets are made by other processes.
    loaded.clear()
    keep_freed_memory(False)
    total = scores + sum(row["left"] * (row["seconds"] or 0.0) for row in rows)
    told = [f"{row['method']}, {row['budget']}: {row['left']} of {row['seconds'] or 0:.0f} s" for row in rows]
    told += [f"scores: {scores:.0f} s", f"total: {total:.0f} s = {total / 3600:.1f} h"]
    accelerator.print("\n".join(["\nestimate of what is left", *told, ""]))
    return {"seconds": total, "sets": rows, "scores": scores}


def _load(settings: DistillConfig, loaded: dict[str, Banks]) -> Banks:
    """Returns source and held-out images; of several sources the last one stays loaded."""
    labelled = settings.targets.of == LABELS
    key = repr((settings.data, labelled))
    if key not in loaded:
        loaded.clear()
        images, heldout = load_images(settings.data, settings.seed, False)
        if labelled:
            images, heldout = with_classes(images, settings.data), with_classes(heldout, settings.data)
        loaded[key] = images, heldout
    return loaded[key]


def _distilling(settings: DistillConfig, loaded: dict[str, Banks], accelerator: Accelerator) -> float:
    """Returns the seconds that are left of a run, but for the teacher's features, which all runs share."""
    settings = replace(settings, run=replace(settings.run, estimate=True))
    run = RunFolder(Path(str(settings.output)), to_dict(settings), is_main=False, defaults=DistillConfig())
    images, heldout = _load(settings, loaded)
    heldout = draw_heldout(heldout, settings.evaluate.max_heldout, settings.seed)
    build = partial(build_distiller, settings, accelerator)
    space = PixelSpace.of(images.pixels)
    with generators_kept(accelerator.device):
        stages = list(time_distilling(settings, images, heldout, space, run, accelerator, build))
    return sum(stage.seconds for stage in stages if stage.name != "features")


def _scoring(
    asked: EvaluateConfig, settings: DistillConfig, sets: int, loaded: dict[str, Banks], accelerator: Accelerator
) -> float:
    """Returns the seconds of one evaluation of so many sets beside its references."""
    images, heldout = _load(settings, loaded)
    heldout = draw_heldout(heldout, asked.evaluate.max_heldout, settings.seed)
    shape: dict[str, Any] = {"in_chans": images.num_channels, "image_size": images.image_size, "num_targets": _WIDTH}
    candidate = StudentEntry.of(settings.student.name, settings.student.model_args, [], **shape)
    data = RealData("source", images, heldout, PixelSpace.of(images.pixels), accelerator.device, None)
    size, use = settings.distiller.num_images, asked.student_training
    steps = asked.accuracy.num_steps(size) if "accuracy" in asked.protocols else 0
    if set(asked.protocols) != {"accuracy"}:
        steps += use.num_steps(size)
    use = replace(use, steps=max(1, steps), max_steps=None)
    stage = time_evaluation(candidate, size, data, use, asked.probe, asked.evaluate.seeds, accelerator)
    forms = {"images": 1, "bytes": len(asked.forms), "both": 1 + len(asked.forms)}[asked.at_equal]
    # It is of a set, as many random images, and no pre-training.
    return stage.seconds / 2 * (sets + forms * len(asked.references))
