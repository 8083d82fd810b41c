"""Real images with their targets, chosen by a method: the baselines of distilled sets."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.selection.methods import SELECTIONS as SELECTIONS, SelectionSettings as SelectionSettings
    from ssdd_hub.selection.source import Source as Source, SourcePairs as SourcePairs
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "methods: SELECTIONS SelectionSettings",
        "source: Source SourcePairs",
    )
