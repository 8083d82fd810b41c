"""The distilled set: its format, card, checks, use and publication."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.sets.check import Finding as Finding, check_folder as check_folder, verify_folder as verify_folder
    from ssdd_hub.sets.distilled import DistilledSet as DistilledSet
    from ssdd_hub.sets.interop import export_tensors as export_tensors, import_tensors as import_tensors
    from ssdd_hub.sets.pretrain import (
        SetPairs as SetPairs,
        pretrain_student as pretrain_student,
        stated_use as stated_use,
    )
    from ssdd_hub.sets.provenance import describe_run as describe_run, describe_training as describe_training
    from ssdd_hub.sets.publish import plan_set as plan_set, push_set as push_set, rerender_card as rerender_card
    from ssdd_hub.sets.release import pack_model as pack_model, save_student as save_student
    from ssdd_hub.sets.views import add_views as add_views
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "check: Finding check_folder verify_folder",
        "distilled: DistilledSet",
        "interop: export_tensors import_tensors",
        "pretrain: SetPairs pretrain_student stated_use",
        "provenance: describe_run describe_training",
        "publish: plan_set push_set rerender_card",
        "release: pack_model save_student",
        "views: add_views",
    )
