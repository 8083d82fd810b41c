"""The beginning of a recipe: its processes, its folder, and its settings as they were resolved."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from ssdd_hub.errors import InputError
from ssdd_hub.runs.folder import RunFolder, require_folder
from ssdd_hub.runs.launch import build_accelerator
from ssdd_hub.settings import to_dict


def begin(
    config: Any, *, one_process: bool = False, same_settings: bool = True, defaults: Any = None
) -> tuple[Accelerator, RunFolder]:
    """Starts the processes of a recipe and opens its run folder.

    Args:
        config: The settings, with `run` and `output`.
        one_process: Refuse several processes.
        same_settings: See `RunFolder`.
        defaults: See `RunFolder`.

    Raises:
        InputError: On all processes, where one of them cannot use the folder.
    """
    cache = getattr(config.run, "cache", None) or getattr(config, "cache", None)
    if cache:
        # It is used late. This also raises for a name that the file system does not take.
        require_folder("--run.cache" if hasattr(config.run, "cache") else "--cache", Path(cache))
    _check_apart(Path(config.output), getattr(config, "data", None))
    accelerator = build_accelerator(config.run, Path(config.output))
    if one_process and accelerator.num_processes > 1:
        raise InputError(f"one process is required, got {accelerator.num_processes}: launch with --num_processes 1")
    run, problem = None, ""
    try:
        run = RunFolder(Path(config.output), to_dict(config), accelerator.is_main_process, same_settings, defaults)
    except InputError as error:
        problem = str(error)
    # Only the main process finds the folder in use: the others would wait for it, until they are killed.
    problems = [text for text in gather_object([problem]) if text]
    if run is None or problems:
        if run:
            run.close()
        raise InputError(problems[0])
    run.tell = accelerator.print
    return accelerator, run


def _check_apart(output: Path, data: Any) -> None:
    """Refuses a run inside the folder of its images, which would hold others when the run goes on."""
    source = Path(data.name) if data is not None else output
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise InputError(
            f"--output {output} is inside --data.name {source}, and what the run writes would be read as images: "
            "choose another --output"
        )
