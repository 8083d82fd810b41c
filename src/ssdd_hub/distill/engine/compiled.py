"""Functions compiled by torch.compile where that is possible, and uncompiled where it is not."""

import copy
import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssdd_hub.distill.engine.gpu_layers import quicken
from ssdd_hub.distill.engine.winograd import train_by_winograd

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
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
    """The forward pass of all modules of one architecture and mode, compiled once, with weights as arguments.

    Args:
        module: One of them; it is copied.
        compiled: Whether to compile the forward and the backward pass.
        winograd: Whether to compute wide 3x3 convolutions by Winograd's algorithm.
    """

    def __init__(self, module: nn.Module, compiled: bool, winograd: bool = False) -> None:
        self._template = copy.deepcopy(module)
        if winograd:
            train_by_winograd(self._template)
        gpu = any(parameter.is_cuda for parameter in module.parameters())
        if compiled and gpu:
            quicken(self._template)
        self._call = Compiled(self._forward, gpu) if compiled else self._forward

    def __call__(self, module: nn.Module, images: Tensor) -> Tensor:
        """Returns `module(images)`, with its gradients and its changes of buffers."""
        return self._call({**dict(module.named_parameters()), **dict(module.named_buffers())}, images)

    def _forward(self, state: dict[str, Tensor], images: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._template, state, (images,))
        return outputs
