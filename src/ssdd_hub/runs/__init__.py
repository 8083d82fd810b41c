"""What a recipe runs in: its folder, log, checkpoints, processes and machine."""

from typing import TYPE_CHECKING

from ssdd_hub.lazy import lazy_names

if TYPE_CHECKING:
    from ssdd_hub.runs.checkpoints import Checkpoints as Checkpoints, load_tree as load_tree, save_tree as save_tree
    from ssdd_hub.runs.folder import RunFolder as RunFolder, RunLog as RunLog
    from ssdd_hub.runs.launch import (
        build_accelerator as build_accelerator,
        keep_freed_memory as keep_freed_memory,
        report_errors as report_errors,
    )
    from ssdd_hub.runs.machine import describe_machine as describe_machine, describe_versions as describe_versions
    from ssdd_hub.runs.run_settings import (
        EstimatedSettings as EstimatedSettings,
        LaunchSettings as LaunchSettings,
        RunSettings as RunSettings,
        UntrackedSettings as UntrackedSettings,
    )
else:
    __getattr__, __all__ = lazy_names(
        __name__,
        "checkpoints: Checkpoints load_tree save_tree",
        "folder: RunFolder RunLog",
        "launch: build_accelerator keep_freed_memory report_errors",
        "machine: describe_machine describe_versions",
        "run_settings: EstimatedSettings LaunchSettings RunSettings UntrackedSettings",
    )
