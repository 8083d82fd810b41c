"""The error to the teacher over the seconds of a training: when it reaches a goal, or when it would."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

Record = dict[str, Any]
# A line is fitted through so many points at least.
LEAST_POINTS = 3
# A line that reaches the goal later than this is as good as flat.
MOST_STEPS = 1e12


@dataclass(frozen=True)
class Point:
    """What a set is worth at one step of its training: the error to the teacher of students pre-trained on it.

    Attributes:
        step: Outer steps done.
        seconds: Since the start of the contender, its building and warm-up included.
        mean: Of the students' errors.
        std: Of the students' errors, with `n - 1`.
        n: Students.
        values: The error of each.
    """

    step: int
    seconds: float
    mean: float
    std: float
    n: int
    values: list[float]


@dataclass(frozen=True)
class Curve:
    """The course of one contender.

    Attributes:
        name: The contender's.
        steps: Outer steps that it was to do; a budget may have ended it before.
        points: In order; the first is that of step 0, after the warm-up, the last that of the last step done.
    """

    name: str
    steps: int
    points: Sequence[Point]

    @property
    def warm_up(self) -> float:
        """Seconds before the first outer step."""
        return self.points[0].seconds

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds of an outer step; None where none was done."""
        last = self.points[-1]
        return (last.seconds - self.warm_up) / last.step if last.step else None

    def arrival(self, goal: float) -> float | None:
        """Returns the seconds after which the mean error first is at a goal, or None where it never is.

        Between two points the error is taken as linear in the logarithm of the seconds. A goal that is reached by the
        first point after step 0 is dated at that point: nothing is known of the way there.

        Args:
            goal: An error.
        """
        for before, after in pairwise(self.points):
            if before.mean > goal >= after.mean:
                share = (before.mean - goal) / (before.mean - after.mean) if before.step else 1.0
                return float(before.seconds ** (1 - share) * after.seconds**share)
        return None

    def arrivals(self, share: float) -> list[float | None]:
        """Returns the same of each student alone, whose goal is by a share below its own error on random images."""
        found = []
        for k, random in enumerate(self.points[0].values):
            own = [replace(point, mean=point.values[k]) for point in self.points]
            found.append(replace(self, points=own).arrival(random * (1 - share)))
        return found

    def extrapolate(self, goal: float) -> Record:
        """Says when the error would be at a goal if it went on as in the last half of the points.

        A least-squares line of the mean error over the logarithm of the step is followed to the goal; its step becomes
        seconds by the mean seconds of a step. A schedule that ends sooner is not asked. Where the training has hardly
        begun to act, the error falls faster than such a line, which then is too late. A line over the step itself is
        too early, since no error falls evenly to the end.

        Args:
            goal: An error.

        Returns:
            `seconds` and `step`, never before the last point; both None where there is no saying, with a `reason`.
            `points` that the line is fitted on, and its `slope`, per factor e of steps. `linear`, the seconds by the
            line over the step itself, or None where there are none.
        """
        trained = [point for point in self.points if point.step > 0]
        fitted = trained[-max(LEAST_POINTS, math.ceil(len(trained) / 2)) :]
        found: Record = {"seconds": None, "step": None, "reason": None, "points": len(fitted), "slope": None}
        found["linear"] = None
        if len(fitted) < LEAST_POINTS or self.seconds_per_step is None:
            return found | {"reason": f"a line takes {LEAST_POINTS} points after step 0, and there are {len(fitted)}"}
        steps, errors = [point.step for point in fitted], [point.mean for point in fitted]
        slope, exponent = _line_to(goal, [math.log(step) for step in steps], errors)
        even_slope, even_step = _line_to(goal, steps, errors)
        found["slope"] = slope
        if even_slope < 0:
            found["linear"] = self._seconds_at(even_step)
        if slope >= 0:
            return found | {"reason": "the error does not fall any more"}
        if exponent > math.log(MOST_STEPS):
            return found | {"reason": f"the error falls too slowly: it would take more than {MOST_STEPS:.0e} steps"}
        step = max(math.exp(exponent), steps[-1])
        return found | {"seconds": self._seconds_at(step), "step": step}

    def _seconds_at(self, step: float) -> float:
        return self.warm_up + max(step, self.points[-1].step) * (self.seconds_per_step or 0.0)


def _line_to(goal: float, places: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Returns the slope of a least-squares line, and the place where it is at the goal; infinity for a flat one."""
    slope, offset = (float(number) for number in np.polyfit(places, errors, 1))
    return slope, (goal - offset) / slope if slope else math.inf


def compare_curves(curves: Sequence[Curve], goal: float) -> Record:
    """Compares the seconds that contenders take to the same error.

    Args:
        curves: One at least; all start from the same random images.
        goal: The share by which the error is to fall below that of these images, in (0, 1).

    Returns:
        As JSON: `goal`; `random`, the error of random images with mean, std, n and values; `goal_error`; and
        `contenders`, each with its name as `contender`, the `steps` that it was to do and those `done`, `warm_up` and
        `seconds_per_step`, `arrived` in seconds or None, `arrived_by_student` for each student alone, what
        `Curve.extrapolate` says as `extrapolated` where it did not arrive, `ratio` of its seconds, measured or
        extrapolated, to those of the first contender, and `points`.
    """
    random = {name: value for name, value in asdict(curves[0].points[0]).items() if name not in ("step", "seconds")}
    goal_error = random["mean"] * (1 - goal)
    contenders = [_describe(curve, goal, goal_error) for curve in curves]
    first = time_to_goal(contenders[0])
    for record in contenders:
        seconds = time_to_goal(record)
        record["ratio"] = seconds / first if seconds and first else None
    return {"goal": goal, "random": random, "goal_error": goal_error, "contenders": contenders}


def time_to_goal(contender: Record) -> float | None:
    """Returns the seconds to the goal, measured or extrapolated, or None where there is no saying.

    Args:
        contender: One of those that `compare_curves` returns.
    """
    seconds: float | None = contender["arrived"]
    return seconds if contender["extrapolated"] is None else contender["extrapolated"]["seconds"]


def _describe(curve: Curve, goal: float, goal_error: float) -> Record:
    arrived = curve.arrival(goal_error)
    return {
        "contender": curve.name,
        "steps": curve.steps,
        "done": curve.points[-1].step,
        "warm_up": curve.warm_up,
        "seconds_per_step": curve.seconds_per_step,
        "arrived": arrived,
        "arrived_by_student": curve.arrivals(goal),
        "extrapolated": curve.extrapolate(goal_error) if arrived is None else None,
        "points": [asdict(point) for point in curve.points],
    }
