"""Checkpoints: nested state as one safetensors file without pickle, written atomically.

Tensors are stored as they are; dictionaries, also with integer keys, lists and scalars as JSON in the file's header,
with the sha256 of all of it: a flipped bit would otherwise change all that follows, unseen. SHA-256 and not a CRC,
since processors compute it as fast, and the write takes longer.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path, remove_abandoned

_LOG = logging.getLogger(__name__)

Tree = Any  # dict, list or tuple of trees; a tensor; or a JSON scalar


def save_tree(path: Path, tree: Tree) -> None:
    """Writes nested dictionaries and lists of tensors, numbers, strings, booleans and None atomically."""
    tensors: dict[str, Tensor] = {}
    content = _encode(tree, tensors)
    header = json.dumps({"sha256": _digest(content, tensors), "content": content})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": header})


def load_tree(path: Path) -> Tree:
    """Reads what `save_tree` wrote; tensors come on the CPU, tuples as lists.

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


class Checkpoints:
    """The newest checkpoints of one stage of a run: `folder/step-00000100.safetensors`; `keep` of them stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, tree: Tree) -> None:
        """Writes the state after `step` steps and removes all but the newest checkpoints."""
        save_tree(self._path(step), tree)
        # A run that comes to this step has found later ones damaged, or it would have gone on from there.
        paths, later = self._paths(), [path for path in self._paths() if path > self._path(step)]
        for path in {*later, *sorted({*paths} - {*later})[: -self.keep]}:
            path.unlink(missing_ok=True)
        # A killed process leaves the file that it was writing.
        remove_abandoned(self.folder)

    def load_newest(self) -> Tree | None:
        """Returns the newest whole state, or None when there is none yet.

        Raises:
            InputError: All are damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return load_tree(path)
            except InputError as error:
                if path == paths[0]:
                    raise
                _LOG.warning("%s; the one before it is taken", str(error).partition(": remove it")[0])
        return None

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, by its name alone; None when there is none yet."""
        steps = (path.stem.removeprefix("step-") for path in self._paths())
        return max((int(step) for step in steps if step.isdecimal()), default=None)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))
