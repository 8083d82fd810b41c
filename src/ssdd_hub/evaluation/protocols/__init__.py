"""Protocols of evaluation, one a file."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.evaluation.protocols.accuracy import Accuracy as Accuracy, AccuracySettings as AccuracySettings
    from ssdd_hub.evaluation.protocols.backbone_probe import (
        BackboneProbe as BackboneProbe,
        BackboneProbeSettings as BackboneProbeSettings,
    )
    from ssdd_hub.evaluation.protocols.base import (
        EvaluationProtocol as EvaluationProtocol,
        LabelledProtocol as LabelledProtocol,
        Measure as Measure,
        Pretrained as Pretrained,
    )
    from ssdd_hub.evaluation.protocols.dd_ranking import (
        DdRankingSettings as DdRankingSettings,
        accuracy_variants as accuracy_variants,
        robustness_records as robustness_records,
    )
    from ssdd_hub.evaluation.protocols.finetune import FinetuneSettings as FinetuneSettings, FineTuning as FineTuning
    from ssdd_hub.evaluation.protocols.kd import (
        KdSettings as KdSettings,
        KnowledgeDistillation as KnowledgeDistillation,
    )
    from ssdd_hub.evaluation.protocols.knn import KnnSettings as KnnSettings, NearestNeighbours as NearestNeighbours
    from ssdd_hub.evaluation.protocols.krr import KernelRegression as KernelRegression, KrrSettings as KrrSettings
    from ssdd_hub.evaluation.protocols.linear_probe import (
        LinearProbe as LinearProbe,
        MkdtProbe as MkdtProbe,
        ProbeSettings as ProbeSettings,
    )
    from ssdd_hub.evaluation.protocols.rank import RankSettings as RankSettings, rank_records as rank_records
    from ssdd_hub.evaluation.protocols.teacher_error import TeacherError as TeacherError
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "accuracy: Accuracy AccuracySettings",
        "backbone_probe: BackboneProbe BackboneProbeSettings",
        "base: EvaluationProtocol LabelledProtocol Measure Pretrained",
        "dd_ranking: DdRankingSettings accuracy_variants robustness_records",
        "finetune: FineTuning FinetuneSettings",
        "kd: KdSettings KnowledgeDistillation",
        "knn: KnnSettings NearestNeighbours",
        "krr: KernelRegression KrrSettings",
        "linear_probe: LinearProbe MkdtProbe ProbeSettings",
        "rank: RankSettings rank_records",
        "teacher_error: TeacherError",
    )
