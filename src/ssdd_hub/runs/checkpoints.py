"""Checkpoints: nested state as one safetensors file without pickle, written atomically.

Tensors are stored as they are; dictionaries, also with integer keys, lists and scalars as JSON in the file's header.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path

Tree = Any  # dict, list or tuple of trees; a tensor; or a JSON scalar


def save_tree(path: Path, tree: Tree) -> None:
    """Writes nested dictionaries and lists of tensors, numbers, strings, booleans and None atomically."""
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_encode(tree, tensors))
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
            return _decode(header, {name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, KeyError, ValueError) as error:
        problem = f"is not a whole checkpoint of this package ({error}): remove it and start again"
        raise InputError(f"{path} {problem}") from error


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
        save_tree(self.folder / f"step-{step:08d}.safetensors", tree)
        # A killed process leaves the file that it was writing.
        for path in [*self._paths()[: -self.keep], *self.folder.glob(".step-*.tmp")]:
            path.unlink(missing_ok=True)

    def load_newest(self) -> Tree | None:
        """Returns the newest state, or None when there is none yet."""
        paths = self._paths()
        return load_tree(paths[-1]) if paths else None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))
