"""Scores of sets: students are pre-trained on each and measured by every protocol."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.evaluation.entries import (
        Baselines as Baselines,
        SetEntry as SetEntry,
        StudentEntry as StudentEntry,
        entry_of_set as entry_of_set,
        select as select,
    )
    from ssdd_hub.evaluation.evaluation import EvaluateSettings as EvaluateSettings, Evaluation as Evaluation
    from ssdd_hub.evaluation.inputs import load_dataset as load_dataset, load_set as load_set
    from ssdd_hub.evaluation.real_data import RealData as RealData
    from ssdd_hub.evaluation.store import ScoreStore as ScoreStore
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "entries: StudentEntry SetEntry Baselines select entry_of_set",
        "evaluation: EvaluateSettings Evaluation",
        "inputs: load_set load_dataset",
        "real_data: RealData",
        "store: ScoreStore",
    )
