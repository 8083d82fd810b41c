"""Time to quality: the error to the teacher of students pre-trained on a set, against the seconds of its distillation.

Our implementation and the plain one start from the same images, with the same settings and the same random draws. Each
is trained against the clock and copied at given seconds; the copies are scored afterwards, outside the clock.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ssdd_hub import InputError
from ssdd_hub.bounds import Count, Repeats, Rule, Settings, among
from ssdd_hub.errors import Check
from ssdd_hub.results.charts import new_figure, save_figures
from studies.plain import giving_memory_back

Record = dict[str, Any]
IMPLEMENTATIONS = ("ours", "plain")
START = "start"


@dataclass(frozen=True)
class QualitySettings(Settings, section="quality"):
    """When a set is scored, and how.

    Attributes:
        implementations: Those that are timed: `ours`, `plain`.
        seconds: Times at which the set is copied. The last one ends the training, if its steps are not done before.
        goal: The error is compared with this share below that of the first images.
        seeds: Students per copy.
        max_heldout: Held-out images at most.
    """

    implementations: list[str] = field(default_factory=lambda: list(IMPLEMENTATIONS))
    seconds: list[float] = field(default_factory=lambda: [30.0, 60.0, 120.0, 240.0])
    goal: Annotated[float, Rule("between 0 and 1", lambda goal: 0 < goal < 1)] = 0.31
    seeds: Repeats = 3
    max_heldout: Count = 2000

    def conflicts(self) -> Iterator[Check]:
        """Yields what the two lists must hold."""
        given = self.implementations
        yield among("quality.implementations", given, IMPLEMENTATIONS)
        once = bool(given) and len(set(given)) == len(given)
        yield once, f"quality.implementations must name at least one, each once, got {given}"
        yield min(self.seconds, default=0) > 0, f"quality.seconds must be times above 0, got {self.seconds}"


class Snapshot(NamedTuple):
    """A set on the way: outer steps and seconds since the building of its distiller, `(M, C, H, W)` and `(M, D)`."""

    step: int
    seconds: float
    images: Tensor
    targets: Tensor


def train(
    name: str, build: Callable[[], Any], steps: int, seconds: list[float], device: torch.device
) -> list[Snapshot]:
    """Trains an implementation and copies its set after the first step that ends at or after each of the times.

    Building, warm-up and compilation count. Times that pass before the first outer step have no copy.

    Raises:
        InputError: Images or targets are not finite.
    """
    with giving_memory_back(device) if name == "plain" else nullcontext():
        return list(_snapshots(name, build, steps, sorted(seconds), device))


def _snapshots(
    name: str, build: Callable[[], Any], steps: int, due: list[float], device: torch.device
) -> Iterator[Snapshot]:
    started = time.perf_counter()
    distiller = build()
    for _ in tqdm(distiller.warm_up(), f"{name}: pool", unit="step"):
        if time.perf_counter() - started >= due[-1]:
            return
    for step in tqdm(range(1, steps + 1), name, unit="step"):
        distiller.step()
        if step < steps and time.perf_counter() - started < due[0]:
            continue
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter() - started
        images, targets = (tensor.detach().float().cpu().clone() for tensor in (distiller.images, distiller.targets))
        if not (images.isfinite().all() and targets.isfinite().all()):
            raise InputError(f"{name} diverges before step {step}: lower --distiller.lr-images or .lr-targets")
        yield Snapshot(step, now, images, targets)
        due = [later for later in due if later > now]
        if not due:
            return


def curves(snapshots: Mapping[str, list[Snapshot]], scores: Mapping[str, Record], goal: float) -> Record:
    """Puts snapshots, by implementation, and scores, by `START` and by `label`, together.

    Returns:
        `start`, its score; `goal_error`; `curves` by implementation, each point with `step`, `seconds` and its score;
        `seconds_to_goal` by implementation: those of the first point at or below the goal, None where there is none.
    """
    goal_error = (1 - goal) * scores[START]["mean"]
    found = {
        name: [{"step": s.step, "seconds": s.seconds, **scores[label(name, s)]} for s in taken]
        for name, taken in snapshots.items()
    }
    arrived = {
        name: next((p["seconds"] for p in points if p["mean"] <= goal_error), None) for name, points in found.items()
    }
    return {"start": scores[START], "goal_error": goal_error, "curves": found, "seconds_to_goal": arrived}


def label(name: str, snapshot: Snapshot) -> str:
    """Returns the name under which a snapshot is scored."""
    return f"{name}, step {snapshot.step}"


def quality_table(record: Record) -> str:
    """Returns what `curves` does as plain text."""
    lines = [f"{'':8}{'seconds':>10}{'step':>8}  error to the teacher (held out)"]
    start = record["start"]
    lines.append(f"{START:8}{0:10.1f}{0:8}  {start['mean']:.4f} ± {start['std']:.4f} (n = {start['n']})")
    for name, points in record["curves"].items():
        lines += [f"{name:8}{p['seconds']:10.1f}{p['step']:8}  {p['mean']:.4f} ± {p['std']:.4f}" for p in points]
    for name, seconds in record["seconds_to_goal"].items():
        when = "not reached" if seconds is None else f"reached at {seconds:.1f} s"
        lines.append(f"{name}: goal {record['goal_error']:.4f} {when}")
    return "\n".join(lines)


def render_quality(path: Path, record: Record) -> None:
    """Draws the error against the seconds, a line for each implementation, as a PNG."""
    figure = new_figure(7.5, 4.5)
    axes = figure.add_subplot(xscale="log", xlabel="seconds, warm-up and compilation included")
    axes.set_ylabel("held-out error to the teacher of students\npre-trained on the set (mean ± std)")
    axes.axhline(record["start"]["mean"], color="#9aa5b1", label="first images")
    axes.axhline(record["goal_error"], color="black", linestyle="--", linewidth=1, label="goal")
    for (name, points), colour in zip(record["curves"].items(), ("#1f6f8b", "#c8553d"), strict=False):
        seconds, means, stds = ([point[key] for point in points] for key in ("seconds", "mean", "std"))
        axes.errorbar(seconds, means, stds, fmt="o-", color=colour, capsize=3, label=name)
    axes.legend(fontsize="small")
    save_figures(path.parent, {path.stem: figure})
