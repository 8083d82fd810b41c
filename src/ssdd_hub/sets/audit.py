"""Membership inference audit of a set: how much its images tell of which real images they were made from.

Real images of the source (members) are compared with as many held-out ones that the distillation never saw, by
their similarity to the images of the set. Where the two cannot be told apart, the set says little of who was in the
source; this is a measurement with one simple attack, and no proof of privacy.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from scipy.stats import binomtest, norm
from torch import Tensor
from torch.nn import functional

from ssdd_hub.errors import InputError
from ssdd_hub.record import section
from ssdd_hub.sets.preview import to_grid, to_picture

if TYPE_CHECKING:
    from ssdd_hub.data.bank import ImageBank

_CHUNK = 2**26  # similarities at once
_LEVEL = 0.95
_MOST_PAIRS = 12  # in the picture


def audit(images: Tensor, members: Tensor, others: Tensor, starts: Tensor | None = None) -> dict[str, Any]:
    """Measures in one space what a set tells of its source, as JSON.

    Args:
        images: `(M, F)`, unit vectors of the set's images, whose products are similarities.
        members: `(n, F)`, of images of the source, drawn at random.
        others: `(n, F)`, of held-out images.
        starts: `(m, F)`, of the images of the source that the set started from; None where it started from none.

    Returns:
        `nearest`: median similarity of a set's image to the nearest member and to the nearest held-out image, and for
        what share, with its interval, the member is nearer (0.5 by chance). `auc`: the area under the ROC curve of the
        attack that takes a real image for a member if it is similar to any image of the set, with its 95 % interval
        (0.5 by chance); `auc_starts`: the same for the images that it started from.
    """
    to_member, to_other = _nearest(images, members), _nearest(images, others)
    nearer = int((to_member > to_other).sum())
    low, high = binomtest(nearer, len(images)).proportion_ci(_LEVEL)
    scores, floor = _nearest(members, images), _nearest(others, images)
    found = {
        "members": len(members),
        "heldout": len(others),
        "nearest": {
            "member": _rounded(to_member.median()),
            "heldout": _rounded(to_other.median()),
            "member_nearer": [_rounded(nearer / len(images)), _rounded(low), _rounded(high)],
        },
        "auc": auc_with_interval(scores, floor),
    }
    return found if starts is None else {**found, "auc_starts": auc_with_interval(_nearest(starts, images), floor)}


def auc_with_interval(positives: Tensor, negatives: Tensor) -> list[float]:
    """Returns the area under the ROC curve of scores `(n,)` and `(m,)`, and its 95 % interval.

    The interval is Wilson's (JASA, 1927), for as many draws as the variance of DeLong et al. (Biometrics, 1988) stands
    for: of the share of the other kind that each score beats. A score at either end is added for that variance,
    without which it is 0, and the interval a point, where few scores happen to lie apart. It is at most
    `area (1 - area) / min(n, m)` (van Dantzig, Indagationes Mathematicae, 1951).
    """
    order = negatives.double().sort().values
    above = _share_below(positives, order)
    below = 1 - _share_below(negatives, positives.double().sort().values)
    area = float(above.mean())
    spread = min(sum(_spread(part) / len(part) for part in (above, below)), 1 / min(len(above), len(below)))
    weight = float(norm.ppf((1 + _LEVEL) / 2)) ** 2 * spread
    centre = (area + weight / 2) / (1 + weight)
    reach = (weight * area * (1 - area) + weight**2 / 4) ** 0.5 / (1 + weight)
    return [_rounded(area), _rounded(max(0.0, centre - reach)), _rounded(min(1.0, centre + reach))]


def _spread(shares: Tensor) -> float:
    """Returns the variance of shares, with a 0 and a 1 among them, as a part of the largest for their mean."""
    shares = torch.cat([shares, shares.new_tensor([0.0, 1.0])])
    return float(shares.var(correction=0) / (shares.mean() * (1 - shares.mean())))


def directions(images: Tensor, members: Tensor, others: Tensor, *starts: Tensor) -> list[Tensor]:
    """Returns features `(n, F)`, those of `audit`, as unit vectors from the centre of all real images.

    Features have a common direction, which says nothing.
    """
    centre = torch.cat([members, others]).mean(0)
    return [functional.normalize(part - centre) for part in (images, members, others, *starts)]


def draw_closest(images: Tensor, source: Tensor, similarity: Tensor, place: Tensor) -> Image.Image:
    """Returns a picture of the images of a set that are most similar to a real one, each above that one.

    Args:
        images: `(M, C, H, W)`, pixels in `[0, 1]`.
        source: `(N, C, H, W)`, uint8.
        similarity: `(M,)`, of each image with the nearest real one.
        place: `(M,)`, which real image that is.
    """
    first = similarity.argsort(descending=True)[:_MOST_PAIRS]
    columns = [to_grid([to_picture(torch.cat([images[i], source[place[i]] / 255], 1))]) for i in first.tolist()]
    width = sum(column.width for column in columns) + 4 * (len(columns) - 1)
    picture = Image.new(columns[0].mode, (width, columns[0].height), "white")
    left = 0
    for column in columns:
        picture.paste(column, (left, 0))
        left += column.width + 4
    return picture


def require_source(provenance: Mapping[str, Any], source: "ImageBank", given: Collection[str]) -> None:
    """Refuses images that are not those that a set was made of: an audit would take others for these.

    Args:
        provenance: That of the set; where it records no fingerprint, nothing is compared.
        source: The images.
        given: Names of the settings that a user gave, such as `source.max_images`.
    """
    recorded = section(provenance, "source").get("fingerprint")
    if recorded in (None, source.fingerprint):
        return
    others = sorted(name for name in given if name.startswith("source.") and name != "source.name")
    leave = f"leave out --{' and --'.join(others).replace('_', '-')}, or " if others else ""
    raise InputError(
        f"an audit must have the images that the set was made of, of fingerprint {str(recorded)[:12]}..., and got "
        f"{len(source)} others, of {source.fingerprint[:12]}...: {leave}give them by --source.name"
    )


def start_places(provenance: Mapping[str, Any], size: int) -> Tensor | None:
    """Returns which of `size` images of the source a set started from, `(m,)`; None where its record tells none.

    Nor are places told of images that the record does not identify, since these may be others.
    """
    stated = section(provenance, "start").get("indices")
    known = section(provenance, "source").get("fingerprint")
    rows = stated if known and isinstance(stated, list) else []
    places = [place for row in rows for place in (row if isinstance(row, list) else [row])]
    fits = all(type(place) is int and 0 <= place < size for place in places)
    return torch.tensor(sorted(set(places))) if places and fits else None


def tell_audit(stated: Mapping[str, Any]) -> list[str]:
    """Returns in sentences what an audit found, for cards; nothing of what is not stated in numbers."""
    told = []
    for space, words in (("pixels", "by their pixels"), ("teacher", "by the teacher's features")):
        found = stated.get(space)
        for key, whom in (("auc", "images of the source"), ("auc_starts", "the images that the set started from")):
            area = _area(found.get(key)) if isinstance(found, Mapping) else None
            if area is not None:
                value, low, high = area
                judged = "not measurably better than chance" if low <= 0.5 else "better than chance"
                told.append(
                    f"Audit: telling {whom} from held-out ones {words} succeeds {judged} (AUC {value:.2f}, 95 % "
                    f"interval {low:.2f} to {high:.2f}; 0.5 is chance, 1 is certainty)."
                )
    return told


def _area(value: Any) -> tuple[float, float, float] | None:
    numbers = value if isinstance(value, list) and len(value) == 3 else []
    fits = all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= 1 for each in numbers)
    return (float(numbers[0]), float(numbers[1]), float(numbers[2])) if numbers and fits else None


def _nearest(vectors: Tensor, others: Tensor) -> Tensor:
    """Returns the highest similarity of each vector to any of the others."""
    step = max(1, _CHUNK // len(others))
    return torch.cat([(part @ others.T).max(1).values for part in torch.split(vectors, step)])


def _share_below(scores: Tensor, ordered: Tensor) -> Tensor:
    """Returns the share of ordered values below each score; of equal ones half."""
    scores = scores.double()
    left, right = (torch.searchsorted(ordered, scores, right=side) for side in (False, True))
    return (left + right).double() / 2 / len(ordered)


def _rounded(value: Tensor | float) -> float:
    return round(float(value), 4)
