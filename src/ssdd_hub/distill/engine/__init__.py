"""How an outer step is computed, never what: memory, compilation, CUDA graphs, fast convolutions."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.distill.engine.memory import Parts as Parts
    from ssdd_hub.distill.engine.outer import OuterGradient as OuterGradient
    from ssdd_hub.distill.engine.timing import Stopwatch as Stopwatch
    from ssdd_hub.distill.engine.winograd import pays as pays
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "memory: Parts",
        "outer: OuterGradient",
        "timing: Stopwatch",
        "winograd: pays",
    )
