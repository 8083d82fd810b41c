"""Who races to quality: our implementation and the plain one, each at settings of its own, from the same start."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssdd_hub.data.augment import crop_flip, draw_views
from ssdd_hub.distill.batches import build_batches
from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.winograd import pays
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import SettingsError, require
from ssdd_hub.runs.launch import keep_freed_memory
from ssdd_hub.seeds import draw_batch, generator
from ssdd_hub.selection.source import Source
from ssdd_hub.settings import parse_config
from ssdd_hub.studies.plain import PlainDistiller
from ssdd_hub.targets.cache import FeatureCache
from ssdd_hub.targets.targets import Targets

IMPLEMENTATIONS = ("ours", "plain")
# What decides from which images all contenders start.
SHARED = ("num_images", "pixel_space", "precision")
# How ours computes, which the plain implementation is not asked.
HOW = ("kernel_precision", "micro_batch", "memory_budget", "compile", "winograd")


@dataclass(frozen=True)
class ContenderSettings:
    """One contender.

    Attributes:
        implementation: `ours`, or `plain`: the same mathematics as it is written down first.
        distiller: Its outer problem.
        pool: Its online students.
    """

    implementation: str = "ours"
    distiller: DistillerSettings = field(default_factory=DistillerSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)

    def __post_init__(self) -> None:
        known, plain = IMPLEMENTATIONS, self.implementation == "plain"
        require(
            (
                self.implementation in known,
                f"implementation must be one of {', '.join(known)}, got {self.implementation!r}",
            ),
            (
                not plain or self.pool.renewal == "train",
                f"pool.renewal must be train in the plain implementation, got {self.pool.renewal!r}",
            ),
        )


def read_contenders(
    entries: Mapping[str, Any], distiller: DistillerSettings, pool: PoolSettings
) -> dict[str, ContenderSettings]:
    """Returns the contenders that a recipe's settings name, in their order.

    Args:
        entries: By name what is a contender's own: `implementation`, and entries of `distiller` and `pool`.
        distiller: The outer problem that they have in common otherwise.
        pool: The online students that they have in common otherwise.

    Raises:
        SettingsError: There is none, or something is unknown, of the wrong type or out of range; all of it is named.
    """
    common = {"implementation": "ours", "distiller": asdict(distiller), "pool": asdict(pool)}
    contenders, problems = dict[str, ContenderSettings](), list[str]()
    for name, own in entries.items():
        try:
            contenders[name] = _read({} if own is None else own, common)
        except SettingsError as error:
            problems += [f"contenders.{name}: {problem}" for problem in error.problems]
    if not entries:
        problems.append("contenders must name one at least, such as {ours: {}}")
    if problems:
        raise SettingsError(problems)
    return contenders


def _read(own: Any, common: Mapping[str, Any]) -> ContenderSettings:
    require((isinstance(own, Mapping), f"write what is its own, such as {{implementation: plain}}; got {own!r}"))
    merged, own_outer = _merged(common, own), own.get("distiller") or {}
    settings = parse_config(ContenderSettings, None, [], stated=lambda values: merged)
    outer = asdict(settings.distiller)
    differ = [f"distiller.{name}" for name in SHARED if outer[name] != common["distiller"][name]]
    idle = [f"distiller.{name}" for name in HOW if settings.implementation == "plain" and name in own_outer]
    require(
        (not differ, f"leave out {', '.join(differ)}: all contenders start from the same images, in the same type"),
        (not idle, f"leave out {', '.join(idle)}: the plain implementation has one way to compute"),
    )
    return settings


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the common settings with those of its own in their place; a section is merged entry by entry."""
    merged = dict(common)
    for name, value in own.items():
        section = common.get(name)
        merged[name] = {**section, **value} if isinstance(section, dict) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True, eq=False)
class Start:
    """What all contenders start from.

    Attributes:
        images: First images, `(M, C, H, W)`, float32, as students see them.
        targets: First targets, `(M, D)`.
        source: The real images, with their targets and their teacher.
        cache: The teacher's features of real images, for our implementation.
        student: Returns an untrained student on the CPU.
        accelerator: Device and mixed precision of our implementation; the plain one computes in float32.
        seed: Seed of the run; the same students, ages, slots and real images for all.
    """

    images: Tensor
    targets: Tensor
    source: Source
    cache: FeatureCache
    student: Callable[[], nn.Module]
    accelerator: Accelerator
    seed: int

    def build(self, settings: ContenderSettings) -> Distiller | PlainDistiller:
        """Returns a contender, freshly built."""
        return self._ours(settings) if settings.implementation == "ours" else self._plain(settings)

    @contextmanager
    def memory(self, settings: ContenderSettings) -> Iterator[None]:
        """Inside the block, memory is handled as where the contender runs alone: as by default for the plain one."""
        default = settings.implementation == "plain" and self.accelerator.device.type == "cpu"
        if default:
            keep_freed_memory(False)
        try:
            yield
        finally:
            if default:
                keep_freed_memory()

    def _ours(self, settings: ContenderSettings) -> Distiller:
        outer, accelerator, source = settings.distiller, self.accelerator, self.source
        pool = StudentPool(
            self.student,
            settings.pool,
            self.seed,
            device=accelerator.device,
            autocast=accelerator.autocast,
            compiled=outer.compile,
            winograd=outer.winograd and pays(accelerator.device, accelerator.mixed_precision),
        )
        targets = source.targets
        if not isinstance(targets, Targets):
            raise TypeError(f"targets of a FeatureCache are required, got a {type(targets).__name__}")
        batches = build_batches(
            source.bank,
            self.cache,
            targets,
            source.pixel_space,
            batch_size=outer.batch_size,
            seed=self.seed,
            augment=outer.augment,
            views=0,
        )
        return Distiller(self.images, self.targets, pool, batches, outer, accelerator)

    def _plain(self, settings: ContenderSettings) -> PlainDistiller:
        source, outer, device = self.source, settings.distiller, self.accelerator.device
        transform = source.transform.to(device, torch.float32)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            indices = draw_batch(len(source.bank), outer.batch_size, self.seed, "real batch", step)
            pixels = source.bank.pixels[indices].to(device).float() / 255
            if outer.augment:
                pixels = crop_flip(pixels, draw_views(outer.batch_size, generator(self.seed, "augment", step)))
            return source.pixel_space.normalise(pixels), pixels

        def teacher(pixels: Tensor) -> Tensor:
            return transform(source.teacher(pixels))

        first = self.images.to(device), self.targets.to(device)
        return PlainDistiller(*first, self.student, batch, teacher, outer, settings.pool, self.seed)
