"""Checkpoints: nested state as one safetensors file without pickle, written atomically.

Tensors are stored as they are; dictionaries, also with integer keys, lists and scalars as JSON in the file's header,
with the sha256 of all of it: a flipped bit would otherwise change all that follows, unseen. SHA-256 and not a CRC,
since processors compute it as fast, and the write takes longer.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path, remove_abandoned

_LOG = logging.getLogger(__name__)

Tree = Any  # dict, list or tuple of trees; a tensor; or a JSON scalar


def save_tree(path: Path, tree: Tree) -> str:
    """Writes nested dictionaries and lists of tensors, numbers, strings, booleans and None atomically.

    Returns the sha256 of it all.
    """
    tensors: dict[str, Tensor] = {}
    content = _encode(tree, tensors)
    sha256 = _digest(content, tensors)
    header = json.dumps({"sha256": sha256, "content": content})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": header})
    return sha256


def load_tree(path: Path, sha256: str | None = None) -> Tree:
    """Reads what `save_tree` wrote, with the `sha256` that it returned; tensors come on the CPU, tuples as lists.

    Raises:
        InputError: The file is damaged or was not written by `save_tree`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        # Earlier versions stated no hash.
        stated = header.pop("sha256", None) if isinstance(header, dict) else None
        content = header if stated is None else header["content"]
        if stated not in (None, _digest(content, tensors)):
            raise ValueError("its sha256 is not the one that was written")
        if sha256 not in (None, stated):
            raise ValueError("it is part of another checkpoint")
        return _decode(content, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        problem = f"is not a whole checkpoint of this package ({error}): remove it and start again"
        raise InputError(f"{path} {problem}") from error


def _digest(content: Any, tensors: dict[str, Tensor]) -> str:
    """Returns the sha256 of encoded state and its tensors, which are on the CPU and contiguous."""
    digest = hashlib.sha256(json.dumps(content).encode())
    for name in sorted(tensors, key=int):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # NumPy has no bfloat16, so as bytes.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(tree: Tree, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"items": [[key, _encode(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [_encode(value, tensors) for value in tree]
    return tree


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _decode(value, tensors) for key, value in tree["items"]}
    if isinstance(tree, list):
        return [_decode(value, tensors) for value in tree]
    return tree


def _part(path: Path, process: int) -> Path:
    """Returns the file of one process that belongs to a main file."""
    return path.with_name(f"process-{process:05d}-{path.name}")


class Checkpoints:
    """The newest checkpoints of one stage of a run: `folder/step-00000100.safetensors`; `keep` of them stay.

    State that processes do not share is in a file of each, `process-00001-step-00000100.safetensors`. The main file,
    written last, has their sha256, so that a checkpoint is there when all of it is.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, tree: Tree, own: Tree = None) -> None:
        """Writes the state after `step` steps and removes all but the newest checkpoints.

        Args:
            step: Their number.
            tree: The state that all processes share.
            own: That of this process alone, if there is any: then all processes call this, else only the main one.
        """
        if own:
            state, path = PartialState(), self._path(step)
            part = _part(path, state.process_index)
            parts = gather_object([save_tree(part, own)])
            if not state.is_main_process:
                return
            tree = {**tree, "processes": parts}
        save_tree(self._path(step), tree)
        # A run that comes to this step has found later ones damaged, or it would have gone on from there.
        paths, later = self._paths(), [path for path in self._paths() if path > self._path(step)]
        for path in {*later, *sorted({*paths} - {*later})[: -self.keep]}:
            path.unlink(missing_ok=True)
        kept = {path.name for path in self._paths()}
        for path in self.folder.glob("process-*.safetensors"):
            if path.name[len("process-00000-") :] not in kept:
                path.unlink(missing_ok=True)
        # A killed process leaves the file that it was writing.
        remove_abandoned(self.folder)

    def load_newest(self, shared: bool = True) -> Tree | None:
        """Returns the newest whole state, or None when there is none yet.

        Unless all of it is `shared`, all processes call this and agree on it; `own` in it is that of this process.

        Raises:
            InputError: All are damaged, or another number of processes wrote them.
        """
        if shared:
            return self._newest(self._paths(), load_tree, lambda problem: [problem])
        state = PartialState()
        rank, world = state.process_index, state.num_processes

        def load(path: Path) -> Tree:
            tree = load_tree(path)
            if len(tree["processes"]) == world:
                part = _part(path, rank)
                if not part.exists():
                    raise InputError(f"{path} is not a whole checkpoint without {part}: remove it and start again")
                tree["own"] = load_tree(part, tree["processes"][rank])
            return tree

        # The folder may look otherwise from another machine, for some seconds.
        tree = self._newest(gather_object([self._paths()])[0], load, lambda problem: gather_object([problem]))
        if tree is not None and len(tree["processes"]) != world:
            raise InputError(
                f"the checkpoints in {self.folder} are of {len(tree['processes'])} processes, each with networks of "
                f"its own, and this run has {world}: start as many, or choose another --output"
            )
        return tree

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, by its name alone; None when there is none yet."""
        steps = (path.stem.removeprefix("step-") for path in self._paths())
        return max((int(step) for step in steps if step.isdecimal()), default=None)

    def _newest(
        self, paths: list[Path], load: Callable[[Path], Tree], gather: Callable[[str], list[str]]
    ) -> Tree | None:
        for path in reversed(paths):
            tree, problem = None, ""
            try:
                tree = load(path)
            except InputError as error:
                problem = str(error)
            problem = next(filter(None, gather(problem)), "")
            if not problem:
                return tree
            if path == paths[0]:
                raise InputError(problem)
            _LOG.warning("%s; the one before it is taken", problem.partition(": remove it")[0])
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))
