"""A static copy of a student and of its SGD, on which a CUDA graph is replayed; students are copied in and out.

A graph reads and writes fixed addresses, and the students of a pool come and go: so all take their steps in one place.
"""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ssdd_hub.distill.engine.cuda_graphs import CannotRecord, Recorded, copy_all, pack
from ssdd_hub.distill.pairs import Pairs

_LOG = logging.getLogger(__name__)
Owner = TypeVar("Owner", nn.Module, torch.optim.SGD)
Step = Callable[[nn.Module, torch.optim.Optimizer, Pairs], Tensor]


class Stage:
    """One student in fixed memory; `step` takes a step of it, as `Engine.regression_step` does."""

    def __init__(self, student: nn.Module, step: Step) -> None:
        self.student = copy.deepcopy(student)
        self._step = step
        self._weights = pack(_tensors(self.student))
        self._momenta: list[Tensor] = []
        self._recorded: Callable[[], Tensor] | None = None
        self.forget()

    def leave(self) -> None:
        """Forgets whose copy this is: the student was changed in place, elsewhere."""
        self._shown: tuple[nn.Module | None, torch.optim.SGD | None] = (None, None)

    def forget(self) -> None:
        """Forgets also the memory of students, which may have got other tensors."""
        self.leave()
        self._packed: WeakKeyDictionary[Any, list[Tensor]] = WeakKeyDictionary()

    def show(self, student: nn.Module) -> nn.Module:
        """Copies a student in; returns the copy, always the same module."""
        if student is not self._shown[0]:
            copy_all(self._weights, self._pack(student, _tensors))
            self._shown = (student, None)
        return self.student

    def step(self, student: nn.Module, optimizer: torch.optim.SGD, pairs: Pairs) -> Tensor:
        """Takes a step with the copy, and copies the new state back to the student; returns the loss."""
        self.show(student)
        weights, momenta = self._pack(student, _tensors), self._pack(optimizer, _momenta)
        recorded = self._recorded
        if recorded is None:
            recorded = self._recorded = self._record(optimizer, pairs)
            # Recording has taken some steps, which are undone.
            copy_all(self._weights, weights)
        if self._shown[1] is not optimizer:
            copy_all(self._momenta, momenta)
            self._shown = (student, optimizer)
        copy_all(self._inputs, pairs)
        loss = recorded().clone()
        copy_all(weights, self._weights)
        copy_all(momenta, self._momenta)
        return loss

    def _record(self, optimizer: torch.optim.SGD, pairs: Pairs) -> Callable[[], Tensor]:
        own = torch.optim.SGD(self.student.parameters(), **optimizer.defaults)
        self._momenta = pack(_momenta(own))
        self._inputs = Pairs(*(part.clone() for part in pairs))
        step = partial(self._step, self.student, own, self._inputs)
        try:
            return Recorded(step)
        except CannotRecord as error:
            # The copy stays in use: recorded outer gradients read it.
            _LOG.warning("%s; students are trained launch by launch", error)
            return step

    def _pack(self, owner: Owner, tensors: Callable[[Owner], list[Tensor]]) -> list[Tensor]:
        """Returns the memory blocks of a student or of its optimiser."""
        if owner not in self._packed:
            self._packed[owner] = pack(tensors(owner))
        return self._packed[owner]


def _tensors(student: nn.Module) -> list[Tensor]:
    return [*student.parameters(), *student.buffers()]


def _momenta(optimizer: torch.optim.SGD) -> list[Tensor]:
    """Returns all momenta; before the first step they start at zero."""
    if not optimizer.defaults["momentum"]:
        return []
    states = []
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        state = optimizer.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        states.append(state["momentum_buffer"])
    return states
