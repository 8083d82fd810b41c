"""The loop around `Distiller.step`: warm-up, progress, log, checkpoints, and resuming after an interruption."""

import math
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor

from ssdd_hub.distill.distiller import Distiller
from ssdd_hub.distill.heldout import STAGE, HeldoutError
from ssdd_hub.distill.method import Method
from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.runs.progress import StepBar
from ssdd_hub.runs.run_settings import RunSettings
from ssdd_hub.runs.save_points import SavePoints

_SHOWN = 32  # rows of a batch, in an error
_RATES = ("expert_learning_rate", "learning_rate", "step_size", "lr_step_size")  # of networks, in methods' settings


def distil(
    distiller: Distiller,
    run: RunFolder,
    settings: RunSettings,
    progress: bool = True,
    heldout: HeldoutError | None = None,
    warmed_up: Callable[[], object] = lambda: None,
) -> float:
    """Runs a fresh distiller to its last outer step, from the newest checkpoint on; returns the seconds of all starts.

    On the CPU, images, targets and log are byte for byte those of an unbroken run. With `heldout`, the log has its
    records too, measured by the main process. `warmed_up` is called before the first outer step.

    Raises:
        InputError: The distillation diverges.
    """
    started = time.perf_counter()
    saved = run.checkpoints.load_newest(shared=not distiller.own_state)
    if saved is None:
        run.log.rewind(distiller.method.stage, 0)
        run.log.rewind(STAGE, -1)
        _read_ahead(distiller)
        _warm_up(distiller, run, progress, heldout)
    else:
        distiller.load_state_dict({**saved["distiller"], **saved.get("own", {})})
        started -= saved["seconds"]
        _read_ahead(distiller)
    warmed_up()
    for stage in ("distill", STAGE):
        run.log.rewind(stage, distiller.outer_step)
    first, last, records = distiller.outer_step, distiller.settings.steps, list[dict[str, Any]]()
    bar = StepBar(range(first, last), "distil", last, initial=first, disable=not progress)
    with SavePoints(settings.checkpoint_every, distiller.accelerator.num_processes == 1) as points:
        for step in bar:
            records.append({"stage": "distill", "step": step + 1, **distiller.step()})
            due = points.due(step + 1) or step + 1 == last
            if heldout and run.is_main and step + 1 in heldout.steps:
                records.append(heldout.measure(distiller))
            if due or (step + 1) % settings.log_every == 0:
                bar.set_postfix({"loss": f"{_flush(records, run, distiller):.4g}", **_longest(distiller)})
            if due:
                _save(distiller, run, time.perf_counter() - started)
                points.end_if_asked()
    if first < last:
        waited = f"{distiller.watch.share('data'):.1%} of the time of the steps went to real images and their targets"
        distiller.accelerator.print(waited)
    return time.perf_counter() - started


def _longest(distiller: Distiller) -> dict[str, str]:
    """Returns the shares of the data, and of the longest part, in the time since the last call; none on a GPU."""
    seconds = distiller.watch.seconds
    total = sum(seconds.values())
    if distiller.accelerator.device.type != "cpu" or total == 0:
        return {}
    part = max(seconds, key=lambda name: seconds[name])
    distiller.watch.reset()
    return {name.replace(" ", "_"): f"{seconds[name] / total:.0%}" for name in {part: 0, "data": 0}}


def _read_ahead(distiller: Distiller) -> None:
    """Begins to read the first real images from the disk, where they are there, so that no step waits for them."""
    problem = distiller.method.problem
    if read_ahead := getattr(problem.batches, "read_ahead", None):
        read_ahead(distiller.outer_step, problem.rank, problem.world)


def _warm_up(distiller: Distiller, run: RunFolder, progress: bool, heldout: HeldoutError | None) -> None:
    stage, total = distiller.method.stage, distiller.method.preparation()
    bar = StepBar(distiller.warm_up(), stage, total, disable=not (progress and total))
    losses = ((step, loss) for step, loss in enumerate(bar, start=1) if loss is not None)
    records = [{"stage": stage, "step": step, "loss": loss} for step, loss in losses]
    if records:
        _flush(records, run, distiller)
    if heldout and run.is_main:
        run.log.write([heldout.measure(distiller)])
    _save(distiller, run, 0.0)


def _flush(records: list[dict[str, Any]], run: RunFolder, distiller: Distiller) -> float:
    """Writes and drops the records; returns the last loss. Between writes no step waits for the device."""
    plain = [
        {name: value.item() if isinstance(value, Tensor) else value for name, value in record.items()}
        for record in records
    ]
    losses = [record for record in plain if "loss" in record]
    for record in losses:
        _require_finite(record, run, distiller)
    run.log.write(plain)
    last = losses[-1]
    if last["stage"] == "distill":
        errors = [record["error"] for record in plain if record.get("error") is not None]
        shown = {"loss": last["loss"], **({"heldout_error": errors[-1]} if errors else {})}
        distiller.accelerator.log(shown, step=last["step"])
    records.clear()
    return float(last["loss"])


def _require_finite(record: dict[str, Any], run: RunFolder, distiller: Distiller) -> None:
    """Raises an `InputError` for a step whose loss or gradient is not finite, or after which a student's loss is not.

    It comes before the checkpoint of that step.
    """
    inner, method = record.get("inner_loss"), distiller.method
    loss, finite = record["loss"], record.pop("finite", 0.0)
    if not math.isfinite(loss):
        what = f"loss is {loss}"
    elif not math.isfinite(finite):
        what = f"loss is {loss:.4g} and its gradient is not finite"
    elif inner is not None and not math.isfinite(inner):
        what = f"loss is {loss:.4g} and the inner loss {inner}"
    else:
        return
    of = [each for each in (method.network_of(record), _rows(record, method)) if each]
    saved = run.checkpoints.newest_step()
    kept = "" if saved is None else f"; the checkpoint of step {saved} is whole"
    raise InputError(
        f"the {record['stage']} {what} at step {record['step']}{', of ' if of else ''}{' and '.join(of)}{kept}. "
        f"{_advice(method)}"
    )


def _advice(method: Method) -> str:
    """Returns what to do about a run of a method that diverged, by options that it has."""
    known = {entry.name for entry in fields(method.settings)}
    own = [f"--method.args.{name}" for name in _RATES if name in known]
    rates = ["--distiller.lr-images", "--distiller.lr-targets", *own, *(["--pool.learning-rate"] * ("pool" in known))]
    solved = (
        "where the regression cannot be solved, raise --distiller.ridge or take --distiller.kernel-precision float64"
    )
    source = method.problem.source
    taught = source is not None and source.teacher is not None
    again = "; the teacher can be used again by --teacher.backbone local-dir:OUTPUT/teacher --teacher.pretrained"
    return (
        f"Lower {', '.join(rates[:-1])} or {rates[-1]}{', or standardise the targets' if taught else ''}, in another "
        f"--output ({f'{solved}; ' if 'ridge' in known else ''}in mixed precision try --run.mixed-precision no)"
        f"{again if taught else ''}"
    )


def _rows(record: dict[str, Any], method: Method) -> str:
    """Returns the rows of the real images of a step in words; empty where a record is of none, or none are known."""
    rows = method.real_rows(record["step"] - 1) if record["stage"] == "distill" else None
    if rows is None:
        return ""
    found = sorted({*rows.tolist()})
    more = f", ... ({len(found)} in all, by Method.real_rows)" if len(found) > _SHOWN else ""
    return f"the real images in rows {', '.join(map(str, found[:_SHOWN]))}{more}"


def _save(distiller: Distiller, run: RunFolder, seconds: float) -> None:
    if run.is_main or distiller.own_state:
        state = distiller.state_dict()
        own = {name: state.pop(name) for name in distiller.own_state}
        run.checkpoints.save(distiller.outer_step, {"distiller": state, "seconds": seconds}, own)
