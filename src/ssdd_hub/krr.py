"""The kernel regression under the name that code outside this package uses: `ssdd_hub.krr.outer_loss`."""

from ssdd_hub.distill.engine.ridge_solve import invert_triangular
from ssdd_hub.distill.krr import Regression, linear_kernel, outer_loss, predict

__all__ = ["Regression", "invert_triangular", "linear_kernel", "outer_loss", "predict"]
