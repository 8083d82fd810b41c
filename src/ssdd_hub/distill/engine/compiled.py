"""Functions compiled by torch.compile where that is possible, and uncompiled where it is not."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssdd_hub.distill.engine.gpu_layers import quicken

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Weights = Mapping[str, Tensor]
_LOG = logging.getLogger(__name__)
# On a GPU, cheap results are recomputed from maps that are in memory anyway rather than written and read. By default
# that ends at a few reads or some dozen operations, which the gradient of a batch norm exceeds. On the CPU, where
# arithmetic takes the time, the defaults are better.
GPU_OPTIONS = {"realize_reads_threshold": 16, "realize_opcount_threshold": 200}


class Compiled(Generic[Arguments, Result]):
    """A function of tensors, compiled for each shape it meets; uncompiled from the first failure to compile on.

    The first call of each shape takes seconds to a minute; torch caches the result on disk for other runs.
    """

    def __init__(self, function: Callable[Arguments, Result], gpu: bool = False) -> None:
        self._plain = function
        options: Any = GPU_OPTIONS if gpu else None
        # Shapes recur in every step, so sizes that stay symbols would only cost speed.
        self._call: Callable[Arguments, Result] = torch.compile(function, dynamic=False, options=options)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Calls the function."""
        # Imported here because it takes a second; torch.compile has imported it by now.
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._call(*args, **kwargs)
        except TorchDynamoException as error:
            _LOG.warning(
                "torch.compile cannot be used (%s): the run goes on without it, slower; on the CPU it needs a C++ "
                "compiler",
                str(error).strip().partition("\n")[0][:200],
            )
            self._call = self._plain
            return self._plain(*args, **kwargs)


class SharedForward:
    """The forward pass of all modules of one architecture and mode as a function of their weights, compiled once.

    Args:
        template: A copy of one of them, which may be changed.
        compiled: Whether to compile the forward and the backward pass.
    """

    def __init__(self, template: nn.Module, compiled: bool) -> None:
        gpu = any(parameter.is_cuda for parameter in template.parameters())
        self.template = quicken(template) if compiled and gpu else template
        self._call = Compiled(self.plain, gpu) if compiled else self.plain

    def __call__(self, weights: Weights, images: Tensor) -> Tensor:
        """Returns the outputs, with gradients in weights and images, and changes of buffers."""
        return self._call(weights, images)

    def plain(self, weights: Weights, images: Tensor) -> Tensor:
        """Does the same uncompiled."""
        outputs: Tensor = functional_call(self.template, dict(weights), (images,))
        return outputs


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, not detached."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
