"""Held-out error of a set while it is distilled: mean squared error to the teacher on images that no step sees."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssdd_hub.data.bank import ImageBank
from ssdd_hub.distill.distiller import Distiller
from ssdd_hub.distill.krr import Regression
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.seeds import generator
from ssdd_hub.targets.targets import Targets

STAGE = "heldout"
POINTS = 10  # after the start
SHARE = 0.01  # of the images that pass networks in all outer steps, at most, but for very short runs
_CHUNK = 64  # images that a network sees at a time


@dataclass(frozen=True, eq=False)
class HeldoutError:
    """Mean squared error of targets predicted from the set to the teacher's, of held-out images.

    The prediction is that of KRR-ST: a kernel ridge regression on the set's pairs through a network, here the method's
    `judge` in eval mode, without augmentation and in full precision; the images are the same at every point.

    Nothing random is drawn but which images, once, by the seed; no state of the distillation changes.

    Attributes:
        pixels: Held-out images `(n, C, H, W)`, uint8.
        targets: Their teacher's targets `(n, D)`.
        pixel_space: In which students see real images.
        steps: Numbers of outer steps after which it is measured, the start and the end among them.
    """

    pixels: Tensor
    targets: Tensor
    pixel_space: PixelSpace
    steps: frozenset[int]

    @classmethod
    def plan(
        cls, distiller: Distiller, heldout: ImageBank, targets: Targets | Tensor, pixel_space: PixelSpace
    ) -> "HeldoutError":
        """Chooses as many of the held-out images, with targets `(N, D)`, and of the points as cost about `SHARE`.

        With few steps there are fewer points; at least one batch is measured at the start and at the end.
        """
        settings, seed = distiller.settings, distiller.method.problem.seed
        size = len(distiller.parameterisation)
        rows = distiller.method.rows(size, 0)
        size = size if rows is None else len(rows)
        # An outer step: real images forward, those of the set forward and backward, and inner steps.
        passed = settings.steps * (settings.batch_size + 3 * size + 3 * size * settings.inner_steps)
        least, most = min(settings.batch_size, len(heldout)), int(SHARE * passed)
        points = max(1, min(POINTS, settings.steps, most // (size + least) - 1))
        count = min(len(heldout), max(least, most // (points + 1) - size))
        chosen = torch.randperm(len(heldout), generator=generator(seed, "held-out error"))[:count].sort().values
        steps = frozenset(round(point * settings.steps / points) for point in range(points + 1))
        return cls(heldout.pixels[chosen], targets[chosen], pixel_space, steps)

    @torch.no_grad()
    def measure(self, distiller: Distiller) -> dict[str, Any]:
        """Returns a record of the log: the `error` and the number of `images`.

        It is None where it is not finite or the regression cannot be solved.
        """
        judge = distiller.method.judge()
        modes = {module: module.training for module in judge.modules()}
        try:
            error = self._error(judge.eval(), distiller)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            error = math.nan
        finally:
            for module, training in modes.items():
                module.training = training
        known = error if math.isfinite(error) else None
        return {"stage": STAGE, "step": distiller.outer_step, "error": known, "images": len(self.pixels)}

    def _error(self, judge: nn.Module, distiller: Distiller) -> float:
        # As many pairs as the steps see, always the same.
        rows, dtype = distiller.method.rows(len(distiller.parameterisation), 0), distiller.engine.kernel_dtype
        rows = None if rows is None else rows.to(distiller.engine.device)
        images, targets = distiller.rendered(rows)
        ridge = getattr(distiller.method.settings, "ridge", 1e-6)

        def features(part: Tensor) -> Tensor:
            return pre_logits(judge, part).to(dtype)

        own = torch.cat([features(part) for part in torch.split(images, _CHUNK)])
        fitted = Regression(own, targets.to(dtype), ridge)
        squares = 0.0
        for pixels, truth in zip(torch.split(self.pixels, _CHUNK), torch.split(self.targets, _CHUNK), strict=True):
            real = self.pixel_space.normalise(pixels.to(images.device, images.dtype) / 255)
            squares += (fitted.predict(features(real)) - truth.to(images.device, dtype)).square().sum().item()
        return squares / self.targets.numel()
