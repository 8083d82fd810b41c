"""Stored views of a set: fixed crops and flips of its images, or rotations, each with a target of its own."""

from dataclasses import replace

import torch
from torch import Tensor

from ssdd_hub.data.augment import show_views
from ssdd_hub.distill.parameterisations.views import ViewsSettings, fixed_views_of
from ssdd_hub.errors import InputError, require
from ssdd_hub.seeds import derive_seed
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.targets.cache import fixed_views
from ssdd_hub.targets.transform import TargetTransform
from ssdd_hub.teachers.recorded_teacher import compare_teacher
from ssdd_hub.teachers.teacher import Teacher

_BATCH = 256  # views per forward pass of the teacher


@torch.no_grad()
def add_views(
    distilled: DistilledSet,
    teacher: Teacher,
    transform: TargetTransform,
    count: int,
    seed: int,
    kind: str = "crops",
) -> DistilledSet:
    """Returns the set with `count` fixed views of each image, and a target for each view.

    A view's target is `target + T(view) - T(image)`, where `T` maps pixels clamped to `[0, 1]` to the teacher's
    targets. For a real image with its teacher's target that is the teacher's target of the view; a learned target is
    shifted by what the view changes for the teacher. Storing a shift of the representation for each predefined
    augmentation is from Yu et al. (ICLR 2025, arXiv 2507.21455), who let a network predict it.

    Args:
        distilled: The set; views that it has are replaced.
        teacher: The teacher of its targets.
        transform: The map of the teacher's features to its targets.
        count: Views `K` of each image, at least 1. Fewer of the same seed are the first of these.
        seed: Seed of the views.
        kind: `crops`: crops and flips, other ones for each image. `rotations`: the first `count` of those by 90, 180
            and 270 degrees anticlockwise, of all images, which must be square.

    Raises:
        InputError: `count` is below 1 or above what there is, or teacher and transform are not those of the set.
    """
    width = distilled.targets.shape[1]
    require(
        (count >= 1, f"a set gets at least 1 view of each image, got {count}"),
        (
            transform.width == width,
            f"the transform must give targets of the set's width {width}, got {transform.width}",
        ),
    )
    if differences := compare_teacher(distilled.provenance, teacher).differences:
        raise InputError(
            f"the targets of the set are of another teacher than {teacher.name} ({'; '.join(differences.values())}): "
            "give the teacher that the set was made with"
        )
    size = len(distilled.images)
    if kind == "crops":
        drawn = [fixed_views(range(size), view, derive_seed(seed, "views of a set")) for view in range(count)]
        views = torch.stack(drawn, 1)
    else:
        views = fixed_views_of(ViewsSettings(kind=kind, views=count), size)
    pixels = distilled.pixel_space.denormalise(distilled.images.cpu()).clamp(0, 1)
    before = _targets(teacher, transform, pixels)
    seen = (show_views(pixels, each, torch.zeros(()), kind == "rotations") for each in views.unbind(1))
    # In float64, so that what cancels does so without a trace.
    shifted = [distilled.targets.cpu().double() + (_targets(teacher, transform, each) - before) for each in seen]
    made = {"count": count, "seed": seed, "teacher": teacher.weights_sha256()}
    made |= {} if kind == "crops" else {"kind": kind}
    return replace(
        distilled,
        views=views,
        view_targets=torch.stack(shifted, 1).float(),
        provenance={**distilled.provenance, "views": made},
    )


def _targets(teacher: Teacher, transform: TargetTransform, pixels: Tensor) -> Tensor:
    """Returns the teacher's targets of pixels in `[0, 1]`, `(M, D)`, float64, on the CPU."""
    weights = next(teacher.parameters())
    features = [teacher(part.to(weights)).cpu().float() for part in torch.split(pixels, _BATCH)]
    return transform(torch.cat(features)).double()
