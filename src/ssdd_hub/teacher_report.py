"""What a person looks at after the training of a teacher: its scores as records, and its curves."""

from pathlib import Path
from typing import Any

from ssdd_hub.checkpoint import atomic_path

LINES = (("loss", "#1f6f8b"), ("knn", "#b5523b"), ("rank", "#7a8b1f"))
TITLES = {"loss": "self-supervised loss", "knn": "kNN accuracy in %", "rank": "effective rank of the features"}


def knn_records(log: list[dict[str, Any]], about: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the kNN scores of the fresh and of the trained backbone, as `scores.json` has them.

    Args:
        log: Records of `log.jsonl`; those of stage `teacher` with `knn` count.
        about: `source`, `target` and `student`, the backbone, of the records.

    Returns:
        Two records, sets `untrained` and `teacher`; none where there were no labels.
    """
    scored = [record for record in log if record["stage"] == "teacher" and "knn" in record]
    if not scored:
        return []
    values = {"untrained": scored[0]["knn"], "teacher": scored[-1]["knn"]}
    return [accuracy_record(about, name, "knn", value) for name, value in values.items()]


def accuracy_record(
    about: dict[str, str], name: str, protocol: str, accuracy: float, labels: int | None = None
) -> dict[str, Any]:
    """Returns one accuracy, in `[0, 1]`, of one network as `scores.json` has it; the arguments are its entries."""
    facts = {"set": name, **about, "protocol": protocol, "labels": labels, "metric": "accuracy"}
    return {**facts, "mean": accuracy, "std": None, "n": 1, "values": [accuracy]}


def render_training(path: Path, log: list[dict[str, Any]]) -> None:
    """Draws what the log of a teacher's training holds of loss, kNN accuracy and rank over the steps, as a PNG.

    There is no picture of an empty log.
    """
    from matplotlib.figure import Figure

    records = [record for record in log if record["stage"] == "teacher"]
    drawn = [(name, colour) for name, colour in LINES if any(name in record for record in records)]
    if not drawn:
        return
    figure = Figure(figsize=(4.2 * max(1, len(drawn)), 3.2), layout="constrained")
    for axes, (name, colour) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        points = [(record["step"], record[name]) for record in records if name in record]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, [100 * value for value in values] if name == "knn" else values, ".-", color=colour)
        axes.set_xlabel("step")
        axes.set_title(TITLES[name], fontsize=10)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
