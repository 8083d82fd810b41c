"""Scores of sets: students are pre-trained on each and measured by every protocol."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.evaluation.entries import (
        Candidate as Candidate,
        Contender as Contender,
        References as References,
        select as select,
        set_contender as set_contender,
    )
    from ssdd_hub.evaluation.evaluation import EvaluateSettings as EvaluateSettings, Evaluation as Evaluation
    from ssdd_hub.evaluation.inputs import load_set as load_set, load_target as load_target
    from ssdd_hub.evaluation.real_data import RealData as RealData
    from ssdd_hub.evaluation.store import CellStore as CellStore
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "entries: Candidate Contender References select set_contender",
        "evaluation: EvaluateSettings Evaluation",
        "inputs: load_set load_target",
        "real_data: RealData",
        "store: CellStore",
    )
