"""timm's Muon, quick on devices that emulate bf16 too."""

import threading
from functools import cache
from typing import Any

import torch
from timm.optim import create_optimizer_v2, muon
from torch import Tensor, nn

from ssdd_hub.precision import is_quick_in_bf16


def build_muon(network: nn.Module, momentum: float, **rates: Any) -> torch.optim.Optimizer:
    """Returns timm's Muon for a network, with its AdamW for what has no matrix."""
    _choose_precision()
    built: torch.optim.Optimizer = create_optimizer_v2(network, opt="muon", momentum=momentum, **rates)
    built.register_step_pre_hook(_enter)
    built.register_step_post_hook(_leave)
    return built


# Whether this thread is in a step of an optimiser that was built here: those of others are left as they are.
_step = threading.local()


def _enter(*_: Any) -> None:
    _step.ours = True


def _leave(*_: Any) -> None:
    _step.ours = False


@cache
def _choose_precision() -> None:
    """Lets timm's Newton-Schulz iteration compute in float32 on devices that emulate bf16.

    timm has no option for that. There, the matrix products of a small ConvNet take as long in bf16 as all else of a
    training step; in float32 they hardly count. Devices that are quick in bf16 compute as before.
    """
    iterate = muon.zeropower_via_newtonschulz

    def _orthogonalise(gradient: Tensor, *args: Any, **options: Any) -> Tensor:
        if getattr(_step, "ours", False) and not is_quick_in_bf16(gradient.device):
            options = {"dtype": torch.float32, **options}
        orthogonal: Tensor = iterate(gradient, *args, **options)
        return orthogonal

    muon.zeropower_via_newtonschulz = _orthogonalise
