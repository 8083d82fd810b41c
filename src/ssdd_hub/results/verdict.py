"""The verdict on a set in words: whether it helped, from paired tests against the references."""

from collections.abc import Sequence

from ssdd_hub.results.charts import own_sets
from ssdd_hub.results.compare import LEVEL, NOT_RANKED, compare, compare_at_bytes
from ssdd_hub.results.equal_worth import bytes_for_worth, fewer_bytes
from ssdd_hub.results.tables import Record, amount, group, training_note
from ssdd_hub.text import show_bytes

TEACHER_ERROR = "teacher_error"
MOST_LISTED = 2
"""Measurements that are told one by one; more are counted."""
NOT_NEARER = "more --distiller.steps, a larger --distiller.num-images, or a wider student"
NOT_BETTER = (
    "a stronger teacher (its own features bound what a set can teach: --references teacher measures them), more "
    "--distiller.num-images, or --init kcenter"
)
NO_TEACHER = "more --distiller.steps, more --distiller.num-images, or another --method"
"""Where no error to a teacher was measured: there may be none."""
_BESIDE = {"random": "random real images", "none": "no pre-training"}
TOO_FEW = "--evaluate.seeds 5 or more, without which no difference can be told from chance"


def verdicts(records: Sequence[Record]) -> list[str]:
    """Returns a paragraph for each set that is no reference, with its name where there are several.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    own = own_sets(records)
    told = {name: " ".join(sentences) for name in own if (sentences := verdict(records, name))}
    return [f"{name}: {text}" if len(own) > 1 else text for name, text in told.items()]


def verdict(records: Sequence[Record], name: str = "distilled") -> list[str]:
    """Returns whether a set helped, as sentences; none where nothing was measured.

    The first sentence is about the error to the teacher, the next one about the classes, against `random` (real
    images, with their number where the set has another) and `none` (no pre-training), by two-sided paired t-tests over
    the seeds at p < 0.05, uncorrected; with the chance level, where the records state it. Where references fill as
    many bytes as the set, a further one is against the best of them; where some fill others, one says how many bytes
    they need for as much; and one names sets of more bytes that are no better. The last one says what to try where the
    set did not help.

    Args:
        records: The records of `scores.json`.
        name: The set.

    Raises:
        ValueError: Two records score the same set in the same way.
    """
    records = [record for record in records if record["protocol"] not in NOT_RANKED and record["mean"] is not None]
    results = {
        reference: [result for result in compare(records, reference) if result["set"] == name and result["better"]]
        for reference in ("random", "none")
    }
    errors = {reference: _errors(found) for reference, found in results.items()}
    sizes = {record["set"]: record.get("images") for record in records}
    for result in results["random"] if sizes.get("random") != sizes.get(name) else ():
        result["of"] = sizes["random"]
    classes = {
        reference: [each for each in found if each["metric"] == "accuracy"] for reference, found in results.items()
    }
    sentences = [f"{_teacher_sentence(found)}." for found in errors.values() if found][:1]
    told = [_phrase(found) for found in classes.values() if found]
    if told:
        sentences.append(f"On these classes {'; '.join(told)}{_chance_level(records)}.")
    sentences += _bytes_sentence([result for result in compare_at_bytes(records) if result["set"] == name])
    sentences += filter(None, [training_note(records)])
    sentences += _worth_sentence([result for result in bytes_for_worth(records) if result["set"] == name])
    sentences += _fewer_sentences([result for result in fewer_bytes(records) if result["set"] == name])
    return [*sentences, *_advice(errors, classes)]


def _errors(results: list[Record]) -> list[Record]:
    return [result for result in results if result["protocol"] == TEACHER_ERROR]


def _outcome(result: Record) -> str:
    """Returns `better`, `worse`, `no different` or, with one seed, `untested`."""
    if result["p"] is None:
        return "untested"
    if result["p"] >= LEVEL or result["improves"] is None:
        return "no different"
    return "better" if result["improves"] else "worse"


def _teacher_sentence(results: list[Record]) -> str:
    beside = _beside(results[0])
    words = {
        "better": f"Nearer to the teacher than {beside}",
        "worse": f"Farther from the teacher than {beside}",
        "no different": f"No nearer to the teacher than {beside}",
        "untested": f"Not tested against {beside} (one seed tells no difference from chance)",
    }
    return "; ".join(f"{words[_outcome(result)]}{_figures(result)}" for result in results[:MOST_LISTED])


def _bytes_sentence(results: list[Record]) -> list[str]:
    """Returns how a set stands beside the best real images of as many bytes: accuracies first, then errors."""
    kinds = group(results, "metric")
    told = [_phrase(kinds[(metric,)]) for metric in ("accuracy", "mse") if (metric,) in kinds]
    if not told:
        return []
    size = show_bytes(results[0]["bytes"])
    short = {result["baseline"]: show_bytes(result["filled"]) for result in results if "filled" in result}
    fills = ", ".join(f"{name} fills {filled}" for name, filled in short.items())
    beside = f"At no more bytes ({size}, of which {fills})" if short else f"At equal bytes ({size})"
    return [f"{beside} {'; '.join(told)}."]


def _worth_sentence(results: list[Record]) -> list[str]:
    """Returns how many bytes real images need to be worth as much as a set: by accuracies first, then by errors."""
    kinds, told = group(results, "metric"), []
    for same in (kinds[(metric,)] for metric in ("accuracy", "mse") if (metric,) in kinds):
        if len(same) > MOST_LISTED:
            ends = (choose(same, key=lambda result: float(result["times"])) for choose in (min, max))
            told.append(f"{' to '.join(dict.fromkeys(map(_times, ends)))} as many by {len(same)} measurements")
            continue
        for each in same:
            needed = f"{each['bound']} {show_bytes(each['needed'])}".lstrip()
            told.append(f"{needed} by {_heading(each)}, {_times(each)} as many ({each['reference']})")
    if not told:
        return []
    return [f"To be worth as much as its {show_bytes(results[0]['bytes'])} real images need {'; '.join(told)}."]


def _times(result: Record) -> str:
    return f"{result['bound']} {_factor(result)} times".lstrip()


def _factor(result: Record) -> str:
    return f"{result['times']:.2g}" if result["times"] < 99.5 else f"{result['times']:,.0f}"


def _fewer_sentences(results: list[Record]) -> list[str]:
    """Returns of which sets of more bytes a set has the score, or a better one, by which measurements."""
    told = []
    for (other,), same in group(results, "baseline").items():
        listed = [f"{_heading(result)}{_figures(result)}" for result in same[:MOST_LISTED]]
        listed += [f"{len(same) - MOST_LISTED} more"] if len(same) > MOST_LISTED else []
        fewer = f"{_factor(same[0])} times fewer bytes than {other}"
        told.append(f"{fewer} at the same score or better by {' and '.join(listed)}.")
    return told


def _beside(result: Record, named: bool = True) -> str:
    """Returns what a set was compared with, in words."""
    words = _BESIDE.get(result["baseline"], "")
    if "among" not in result:
        return f"{result['of']:,} {words}" if result.get("of") else words
    best = "the best of real images" if len(result["among"]) > 1 else "real images"
    return f"{best} ({result['baseline']})" if named else best


def _phrase(results: list[Record]) -> str:
    outcomes = [_outcome(result) for result in results]
    if len(results) > MOST_LISTED:
        counts = [
            f"{word} in {outcomes.count(word)}"
            for word in ("better", "no different", "worse", "untested")
            if word in outcomes
        ]
        return f"against {_beside(results[0], named=False)}, of {len(results)} measurements: {', '.join(counts)}"
    words = {"better": "better than", "worse": "worse than", "no different": "no different from"}
    told: dict[str, list[str]] = {}
    for outcome, result in zip(outcomes, results, strict=True):
        against = f"{words.get(outcome, 'not tested against')} {_beside(result)}"
        told.setdefault(against, []).append(f"{_heading(result)}{_figures(result)}")
    return ", ".join(f"{against} by {' and '.join(measured)}" for against, measured in told.items())


def _heading(result: Record) -> str:
    return f"{result['protocol']} {amount(result['labels'])}".rstrip()


def _figures(result: Record) -> str:
    if result["relative"] is not None:
        change = f"{100 * result['relative']:+.0f} %"
    else:
        change = f"{100 * result['difference']:+.1f} points"
    p = "" if result["p"] is None else "p < 0.001, " if result["p"] < 0.001 else f"p = {result['p']:.2g}, "
    return f" ({change}, {p}n = {result['n']})"


def _chance_level(records: Sequence[Record]) -> str:
    levels = {f"{100 / count:.2g} %" for record in records if (count := record.get("classes"))}
    return f"; chance is {' or '.join(sorted(levels))}" if levels else ""


def _advice(errors: dict[str, list[Record]], classes: dict[str, list[Record]]) -> list[str]:
    """Returns what to try, for the first thing that did not succeed."""
    found = [*errors["random"], *classes["random"]]
    if any(_outcome(result) == "untested" for result in found):
        return [f"To try: {TOO_FEW}."]
    if any(_outcome(result) != "better" for result in errors["random"]):
        return [f"To try: {NOT_NEARER}."]
    if classes["random"] and not any(_outcome(result) == "better" for result in classes["random"]):
        return [f"To try: {NOT_BETTER if errors['random'] else NO_TEACHER}."]
    return []
