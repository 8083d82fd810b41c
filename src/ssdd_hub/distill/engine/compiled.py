"""The forward pass of a network as a function of its weights, compiled by torch.compile where that is possible."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssdd_hub.distill.engine.gpu_layers import fuse_layers

Weights = Mapping[str, Tensor]
_LOG = logging.getLogger(__name__)
# On a GPU, cheap results are recomputed from maps that are in memory anyway rather than written and read. By default
# that ends at a few reads or some dozen operations, which the gradient of a batch norm exceeds. On the CPU, where
# arithmetic takes the time, the defaults are better.
GPU_OPTIONS = {"realize_reads_threshold": 16, "realize_opcount_threshold": 200}


class SharedForward:
    """The forward pass of all modules of one architecture and mode.

    The first call of each shape takes seconds to a minute to compile; torch caches the result on disk for other runs.

    Args:
        template: A copy of one of them, which may be changed.
        compiled: Whether to compile the forward and the backward pass.
    """

    def __init__(self, template: nn.Module, compiled: bool) -> None:
        gpu = any(parameter.is_cuda for parameter in template.parameters())
        self.template = fuse_layers(template) if compiled and gpu else template
        self.compiled: Callable[[Weights, Tensor], Tensor] | None = None
        if compiled:
            options: Any = GPU_OPTIONS if gpu else None
            # Shapes recur in every step, so sizes that stay symbols would only cost speed.
            self.compiled = torch.compile(self.plain, dynamic=False, options=options)

    def __call__(self, weights: Weights, images: Tensor) -> Tensor:
        """Returns the outputs, with gradients in weights and images, and changes of buffers."""
        if self.compiled is None:
            return self.plain(weights, images)
        # Imported here because it takes a second; torch.compile has imported it by now.
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self.compiled(weights, images)
        except TorchDynamoException as error:
            _LOG.warning(
                "torch.compile cannot be used (%s): the run goes on without it, slower; on the CPU it needs a C++ "
                "compiler",
                str(error).strip().partition("\n")[0][:200],
            )
            self.compiled = None
            return self.plain(weights, images)

    def plain(self, weights: Weights, images: Tensor) -> Tensor:
        """Does the same uncompiled."""
        outputs: Tensor = functional_call(self.template, dict(weights), (images,))
        return outputs


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, not detached."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
