"""Real images chosen by a method: where distilled sets start, and the baselines that they are measured beside."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.selection.methods import (
        CHOICES as CHOICES,
        SELECTIONS as SELECTIONS,
        SelectionSettings as SelectionSettings,
        choose_rows as choose_rows,
        draw_noise as draw_noise,
    )
    from ssdd_hub.selection.source import Source as Source, SourcePairs as SourcePairs
    from ssdd_hub.selection.start import INITS as INITS, start_from as start_from
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "methods: CHOICES SELECTIONS SelectionSettings choose_rows draw_noise",
        "source: Source SourcePairs",
        "start: INITS start_from",
    )
