"""Models stored in timm's layout, in a folder or a Hub repository: checked before timm loads them.

timm does what a stored `config.json` states: which network to build, with which arguments, and what else to load. So
it must pass an allow-list first. Weights are safetensors, or read by `torch.load` with `weights_only`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ssdd_hub.arguments import ARCHITECTURE, check_arguments, find_problems
from ssdd_hub.errors import InputError
from ssdd_hub.plain_files import require_modest_weights, require_plain_entries
from ssdd_hub.record import is_deeper, load_json
from ssdd_hub.statements import LARGEST_SIDE

CONFIG_FILE = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".tar")
"""Of the files in which timm looks for weights."""
_LARGEST_CONFIG = 2**22  # bytes; the names of 21,841 classes take one MiB
MOST_PARAMETERS = 2**34
_MOST_MODULES = 20_000
_LONGEST_TEXT = 10_000
_MOST_LEVELS = 20
_LONGEST_LICENCE = 200
_LEAST_STD = 1e-6
# What timm states of weights, by the kind of value: never where they are.
_SIZES = ("input_size", "test_input_size", "min_input_size", "pool_size", "test_pool_size")
_SPACES = ("mean", "std")
_NUMBERS = ("crop_pct", "test_crop_pct", "num_classes", "label_offset", "fixed_input_size")
_WORDS = ("architecture", "tag", "interpolation", "crop_mode", "global_pool")
_MODULES = ("first_conv", "classifier")
_LABELS = ("label_names", "label_descriptions")
_TEXTS = (
    *("description", "origin_url", "paper_name", "paper_ids", "notes"),
    *("labels", "num_features"),
    *_LABELS,
)
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_.-]{0,100}", re.ASCII)


def normalised_name(name: str) -> str:
    """Returns the name of a model with its prefix, such as `hf-hub:`, in lower case, as timm reads it."""
    kind, colon, place = name.partition(":")
    return f"{kind.lower()}{colon}{place}" if colon else name


def check_stored(name: str, weights: bool = True) -> str:
    """Checks what a name stands for, on request with its weights; returns the name to load.

    That of a repository states the commit that was checked.

    Raises:
        InputError: The folder holds links, FIFOs or devices, or the configuration does not pass the allow-list.
            Missing files are left for timm to report.
        Exception: What the Hub's client raises.
    """
    kind, _, place = normalised_name(name).partition(":")
    if kind == "local-dir":
        require_plain_entries(Path(place))
        for path in sorted(Path(place).glob("*")):
            if path.suffix in WEIGHT_ENDINGS and path.is_file():
                require_modest_weights(path)
        if (Path(place) / CONFIG_FILE).is_file():
            check_config(Path(place) / CONFIG_FILE)
    elif kind in ("hf-hub", "hf_hub"):
        repo_id, _, revision = place.partition("@")
        path = Path(hf_hub_download(repo_id, CONFIG_FILE, revision=revision or None))
        check_config(path)
        # The folder of a snapshot is named by its commit, so that timm loads what was checked.
        commit = path.parent.name
        # In timm's order, which looks for no others; what is missing is left for it to report.
        for file in _WEIGHTS if weights else ():
            with suppress(EntryNotFoundError):
                require_modest_weights(Path(hf_hub_download(repo_id, file, revision=commit)))
                break
        return f"hf-hub:{repo_id}@{commit}"
    return name


def create_model(
    name: str,
    *,
    pretrained: bool,
    args: Mapping[str, Any],
    num_classes: int | None = None,
    most_parameters: int = MOST_PARAMETERS,
) -> nn.Module:
    """Calls `timm.create_model` with checked arguments: the one way from a name to a timm network.

    Args:
        name: A timm name, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME` with an optional `@REVISION`.
        pretrained: Load the stored weights.
        args: Arguments of the network.
        num_classes: Outputs of its classifier; None for the stored number.
        most_parameters: Limit of its parameters; a stored model may also not have more than its weights have bytes.

    Raises:
        InputError: The arguments, or what is stored under the name, do not pass the allow-list, or the network is too
            large.
        Exception: Whatever timm, safetensors and the Hub's client raise.
    """
    check_arguments(f"model_args of {name!r}", args)
    outputs = {} if num_classes is None else {"num_classes": num_classes}
    checked = check_stored(name, pretrained)
    if pretrained and (size := _weight_bytes(checked)):
        # A classifier that is built and then dropped is in no file; 2**24 are 1,000 classes of 16,384 features.
        most_parameters = min(most_parameters, size + 2**24)
    with _bounded(name, most_parameters):
        model: nn.Module = timm.create_model(checked, pretrained=pretrained, **outputs, **args)
    return model


def _weight_bytes(name: str) -> int:
    """Returns the size of a stored model's largest file of weights, 0 where there is none or it is unknown."""
    kind, _, place = normalised_name(name).partition(":")
    if kind == "local-dir":
        files = {path.name: path.stat().st_size for path in Path(place).glob("*") if path.is_file()}
    elif kind in ("hf-hub", "hf_hub"):
        repo_id, _, commit = place.partition("@")
        cached = (try_to_load_from_cache(repo_id, weights, revision=commit) for weights in _WEIGHTS)
        files = {path: Path(path).stat().st_size for path in cached if isinstance(path, str)}
    else:
        files = {}
    return max((size for path, size in files.items() if path.endswith(WEIGHT_ENDINGS)), default=0)


@contextmanager
def _bounded(name: str, most_parameters: int) -> Iterator[None]:
    """Stops the building of a network at the part that makes it too large, before its memory is written to."""
    parameters, modules = 0, 0

    def count_parameters(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal parameters
        parameters += 0 if parameter is None else parameter.numel()
        if parameters > most_parameters:
            raise InputError(f"{name!r} has more than the {most_parameters:,} parameters allowed: make it smaller")

    def count_modules(module: nn.Module, key: str, part: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > _MOST_MODULES:
            raise InputError(f"{name!r} has more than {_MOST_MODULES:,} modules: make it less deep")

    with (
        register_module_parameter_registration_hook(count_parameters),
        register_module_module_registration_hook(count_modules),
    ):
        yield


def check_config(path: Path) -> None:
    """Raises `InputError` for a stored model's configuration with problems, and names all of them."""
    problems = list(find_config_problems(path))
    if problems:
        raise InputError(f"{path} is not taken: {'; '.join(problems)}. Fetch the model from a source that you trust")


def find_config_problems(path: Path) -> Iterator[str]:
    """Yields a sentence for each problem of a stored model's configuration."""
    if not path.is_file():
        yield "it is no file"
        return
    if path.stat().st_size > _LARGEST_CONFIG:
        yield f"it must be of at most {_LARGEST_CONFIG} bytes, got {path.stat().st_size}"
        return
    try:
        config = load_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"it is no JSON ({type(error).__name__}: {str(error)[:80]})"
        return
    if not isinstance(config, dict):
        yield "it must map names to values"
        return
    name = config.get("architecture")
    if not isinstance(name, str) or not ARCHITECTURE.fullmatch(name) or not timm.is_model(name):
        hint = "one of another package is known once that is imported"
        yield f"its architecture {str(name)[:60]!r} is none that timm knows here ({hint})"
    yield from (f"model_args: {problem}" for problem in find_problems(config.get("model_args", {})))
    # Until 2023 timm wrote all of it into one mapping.
    flat = {key: value for key, value in config.items() if key != "model_args"}
    stated = config["pretrained_cfg"] if "pretrained_cfg" in config else flat
    if not isinstance(stated, Mapping):
        yield "pretrained_cfg must map names to values"
        return
    # Which timm takes from beside it.
    stated = {**stated, **{key: config[key] for key in ("num_classes", *_LABELS) if key in config}}
    for key, value in stated.items():
        # By identity, since 0 and 0.0 equal False.
        absent = value is None or value is False or value == "" or value == [] or value == {}
        if not absent and not _is_fine(key, value):
            yield f"pretrained_cfg.{str(key)[:40]} is not taken with the value {str(value)[:60]!r}"


def _is_fine(key: str, value: Any) -> bool:
    """Whether an entry of `pretrained_cfg` passes the allow-list."""
    values = value if isinstance(value, list) else [value]
    if key in _SIZES:
        length = (1, 2) if "pool" in key else (3,)
        return len(values) in length and all(type(part) is int and 0 < part <= LARGEST_SIDE for part in values)
    if key in _SPACES:
        fine = (
            isinstance(value, list)
            and 1 <= len(values) <= 4
            and all(_is_number(part) and not isinstance(part, bool) for part in values)
        )
        return fine and (key == "mean" or min(values) > _LEAST_STD)
    if key in _NUMBERS:
        return _is_number(value)
    if key == "custom_load":
        # It has an effect only with file names, which are not taken.
        return value is True
    if key == "license":
        return isinstance(value, str) and len(value) <= _LONGEST_LICENCE and value.isprintable()
    if key in _WORDS:
        return isinstance(value, str) and _WORD.fullmatch(value) is not None
    if key in _MODULES:
        return all(isinstance(part, str) and _MODULE.fullmatch(part) for part in values)
    # Texts for people, without effect.
    fine = key in _TEXTS and not is_deeper(value, _MOST_LEVELS)
    return fine and len(json.dumps(value)) <= max(_LONGEST_TEXT, _LARGEST_CONFIG if "label" in key else 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 10**7 and isfinite(value)
