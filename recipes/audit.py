"""Audits a distilled set by membership inference: how much it tells of which real images it was made from.

accelerate launch recipes/audit.py --set runs/digits/distilled
accelerate launch recipes/audit.py --set FOLDER_OR_HUB_ID --source DATA

Real images of the source are compared with as many held-out ones by their similarity to the images of the set, in
pixels and, where the teacher is to be had, in its features. The result is printed, stored in audit.json with a picture
of the closest pairs, and with --record true written into the record and the card of the set's folder.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssdd_hub import DistilledSet, InputError
from ssdd_hub.data import DataSettings
from ssdd_hub.data.bank import draw_heldout
from ssdd_hub.errors import require
from ssdd_hub.evaluation.inputs import stated_settings
from ssdd_hub.evaluation.loading import Loader
from ssdd_hub.files import atomic_path
from ssdd_hub.runs import LaunchSettings, build_accelerator, report_errors
from ssdd_hub.runs.folder import folder_name
from ssdd_hub.seeds import generator
from ssdd_hub.sets.audit import audit, directions, draw_closest, require_source, start_places, tell_audit
from ssdd_hub.sets.similarity import nearest, standardise
from ssdd_hub.settings import parse_config, to_yaml
from ssdd_hub.teachers import Teacher, TeacherSettings


@dataclass(frozen=True)
class AuditConfig:
    """Everything that decides an audit; what is not given of source and teacher is what the set states.

    Attributes:
        set: The set: a folder or a Hub id.
        source: The images that it was made of, with held-out ones.
        teacher: The teacher of its targets; its backbone is `none` where it is not to be had.
        most: Images of the source, and held-out ones, at most.
        record: Whether the result becomes a part of the set's record and card; the set must be a folder.
        run: How the process computes.
        seed: Seed of which images are compared; which ones the set was made of follows the seed of its own run.
        output: The folder of the results; `runs/NAME-audit` when not given, after the set.
    """

    SHORT: ClassVar[dict[str, str]] = {"source": "source.name"}

    set: str = ""
    source: DataSettings = field(default_factory=lambda: DataSettings(name="none"))
    teacher: TeacherSettings = field(default_factory=lambda: TeacherSettings(backbone="none"))
    most: int = 2000
    record: bool = False
    run: LaunchSettings = field(default_factory=LaunchSettings)
    seed: int = 0
    output: str = ""

    def __post_init__(self) -> None:
        require(
            (bool(self.set), "set must name a set: --set FOLDER_OR_HUB_ID"),
            (self.most >= 2, f"most must be at least 2, got {self.most}"),
            (not self.record or Path(self.set).is_dir(), f"record is for sets in folders, and {self.set} is none"),
        )
        if not self.output:
            place = Path(self.set)
            name = place.parent.name if place.name == "distilled" else place.name
            object.__setattr__(self, "output", f"runs/{folder_name(name)}-audit")


def measure(config: AuditConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Loads set, source and teacher, and measures; returns what is stored."""
    accelerator = build_accelerator(config.run, Path(config.output))
    accelerator.print(to_yaml(config))
    distilled = DistilledSet.from_pretrained(config.set)
    # The source is drawn as the run drew it, whatever the audit draws of it.
    loader = Loader(distilled, given, distilled.provenance.get("seed", config.seed), sys.maxsize, accelerator)
    source = loader.source(config.source)
    if source is None:
        raise InputError(f"the source of {config.set} is not stated, or not to be had: give --source DATA")
    require_source(distilled.provenance, source.train, given)
    teacher = loader.teacher(config.teacher)
    pixels = distilled.pixel_space.denormalise(distilled.images)
    # As many of either: among more of one, the nearest is nearer by chance.
    most = min(config.most, len(source.train), len(source.heldout))
    heldout = draw_heldout(source.heldout, most, config.seed).pixels
    rows = torch.randperm(len(source.train), generator=generator(config.seed, "audit"))[:most]
    places = start_places(distilled.provenance, len(source.train))
    parts = [source.train.pixels[rows], heldout]
    parts += [] if places is None else [source.train.pixels[places]]
    found = {"pixels": audit(standardise(pixels), *map(standardise, parts))}
    if teacher is not None:
        with torch.no_grad():
            seen = [pixels.clamp(0, 1), *(part / 255 for part in parts)]
            features = [_features(teacher, part, accelerator.device) for part in seen]
        found["teacher"] = audit(*directions(*features))
    if accelerator.is_main_process:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        with atomic_path(output / "audit.json") as new:
            new.write_text(json.dumps({"set": config.set, **found}, indent=2) + "\n", encoding="utf-8")
        with atomic_path(output / "closest.png") as new:
            draw_closest(pixels, source.train.pixels, *nearest(pixels, source.train.pixels)).save(new, "PNG")
        print("\n".join(tell_audit(found)))
        print(f"\nIn {output}: audit.json, and closest.png, images of the set above the nearest real ones")
        if config.record:
            distilled.provenance["audit"] = found
            distilled.save(config.set)
            print(f"the record and the card of {config.set} state it")
    accelerator.end_training()
    return found


def _features(teacher: Teacher, pixels: Tensor, device: torch.device) -> Tensor:
    """Returns the teacher's features `(n, D)`, on the CPU, of pixels `(n, C, H, W)`."""
    return torch.cat([teacher(chunk.to(device)).float().cpu() for chunk in pixels.split(256)])


@report_errors
def main() -> None:
    """Reads the settings and measures."""
    given = dict[str, Any]()

    def stated(values: Mapping[str, Any]) -> dict[str, Any]:
        given.update(values)
        found = stated_settings(values["set"], values) if values.get("set") else {}
        return {name: found[name] for name in ("source", "teacher", "seed") if name in found}

    measure(parse_config(AuditConfig, None, description=__doc__, stated=stated), given)


if __name__ == "__main__":
    sys.exit(main())
