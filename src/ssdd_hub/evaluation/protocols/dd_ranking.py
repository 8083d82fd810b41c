"""DD-Ranking's label-robust and augmentation-robust scores, from the accuracies of a set and of real images.

Li et al. (2025), "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", arXiv 2505.13300.

The released package, `ddranking` 0.2.0, searches a learning rate for each set and for random images, and with soft
labels lets a teacher of the classes label the random images too. Here all are trained at one rate, and random images
keep the one-hot labels of their classes, so that the teacher's part in a set counts as the set's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from ssdd_hub.bounds import Settings, Share, one_of
from ssdd_hub.evaluation.entries import FULL, NONE
from ssdd_hub.evaluation.evaluation import Record, describe_values
from ssdd_hub.evaluation.protocols.accuracy import Accuracy, AccuracySettings
from ssdd_hub.models.pretraining import StudentTrainingSettings

DD_RANKING = "dd_ranking"
RANDOM = "random"
_Place = tuple[str, str, str, str]  # set, protocol, dataset, student


@dataclass(frozen=True)
class DdRankingSettings(Settings, section=DD_RANKING):
    """How accuracies become scores.

    Attributes:
        weight: Of the improvement over random images, against the loss by hard labels; and of the improvement with
            augmentation, against that without. The released package has 0.5.
        augment: The augmentation that is compared with none where that of `accuracy` is none.
    """

    weight: Share = 0.5
    augment: Annotated[str, one_of(("flip", "crop-flip", "dsa"))] = "dsa"


def normalise(value: float) -> float:
    """Returns `(e^value - e^-1) / (e - e^-1)`: 0 for -1, 1 for 1."""
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def label_robust_score(
    full_hard: float, set_hard: float, set_own: float, random_own: float, weight: float = 0.5
) -> float:
    """Returns the label-robust score of four accuracies in `[0, 1]`.

    It grows with the improvement over random images, the set with labels as the method has them, and falls with what
    is lost against the whole source where both have hard labels. Accuracies are fractions here, which keep scores in
    `[0, 1]`; `ddranking` 0.2.0 puts percentages into the exponential.
    """
    return normalise(weight * (set_own - random_own) - (1 - weight) * (full_hard - set_hard))


def augmentation_robust_score(
    set_augmented: float, random_augmented: float, set_plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """Returns the augmentation-robust score of four accuracies in `[0, 1]`.

    It is of the improvements over random images with augmentation and without.
    """
    return normalise(weight * (set_augmented - random_augmented) + (1 - weight) * (set_plain - random_plain))


def accuracy_variants(
    settings: AccuracySettings, use: StudentTrainingSettings, scores: DdRankingSettings
) -> dict[str, Accuracy]:
    """Returns the trainings that the scores are of; those that are alike are one.

    `own`: as the settings have it; `hard`: with hard labels, not augmented; `plain`: not augmented; `augmented`.
    """
    own = Accuracy(settings, use)
    wanted = {
        "own": (settings.loss, own.augment),
        "hard": ("hard", "none"),
        "plain": (settings.loss, "none"),
        "augmented": (settings.loss, scores.augment if own.augment == "none" else own.augment),
    }
    made = {wanted["own"]: own}
    for loss, augment in wanted.values():
        if (loss, augment) not in made:
            temperature = settings.temperature if loss == settings.loss else None
            changed = replace(settings, loss=loss, temperature=temperature, augment=augment)
            made[loss, augment] = Accuracy(changed, use, f"{own.name} {loss} {augment}")
    return {kind: made[variant] for kind, variant in wanted.items()}


def robustness_records(
    records: Sequence[Record], variants: Mapping[str, Accuracy], settings: DdRankingSettings
) -> list[Record]:
    """Returns records of protocol `dd_ranking`, metrics `lrs` and `ars` in `[0, 1]`, one value for each seed.

    They are of each set and selection beside random images of the same number and, for `lrs`, the whole source.
    """
    names = {kind: protocol.name for kind, protocol in variants.items()}
    scored = [record for record in records if record["protocol"] in names.values()]
    found = {(r["set"], r["protocol"], r["target"], r["student"]): r for r in scored}
    return [score for record in scored for score in _scores(record, found, names, settings.weight)]


def _scores(
    record: Record, found: Mapping[_Place, Record], names: Mapping[str, str], weight: float
) -> Iterator[Record]:
    own, place = record["set"], (record["target"], record["student"])
    beside = (RANDOM, f"{RANDOM}-{record.get('images')}")
    others = {name: found.get((name, names["own"], *place)) for name in beside}
    size = record.get("images")
    random = next((name for name, other in others.items() if other and other.get("images") == size), None)
    if record["protocol"] != names["own"] or own in (NONE, FULL) or random is None:
        return

    def columns(*parts: tuple[str, str]) -> list[tuple[float | None, ...]]:
        """Returns for each seed the accuracies of sets in variants; nothing where one was not measured."""
        records = [found.get((name, names[kind], *place)) for name, kind in parts]
        return list(zip(*(each["values"] for each in records if each), strict=True)) if all(records) else []

    of_labels = columns((FULL, "hard"), (own, "hard"), (own, "own"), (random, "own"))
    of_views = columns((own, "augmented"), (random, "augmented"), (own, "plain"), (random, "plain"))
    kept = ("set", "source", "target", "student", "use", "images", "bytes", "labels")
    facts = {key: record[key] for key in kept if key in record}
    for metric, formula, rows in (
        ("lrs", label_robust_score, of_labels),
        ("ars", augmentation_robust_score, of_views),
    ):
        if rows:
            values = [_of(formula, row, weight) for row in rows]
            yield {**facts, "protocol": DD_RANKING, "metric": metric, **describe_values(values)}


def _of(formula: Callable[..., float], accuracies: Sequence[float | None], weight: float) -> float | None:
    return None if None in accuracies else formula(*accuracies, weight)
