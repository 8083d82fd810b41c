"""What a distillation holds in memory: at least, checked before its work starts, and about, told before its steps."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine.checkpointing import check_checkpointing
from ssdd_hub.distill.engine.memory import CPU_PART, SHARE
from ssdd_hub.distill.engine.winograd import transformed_bytes
from ssdd_hub.distill.pool import PoolSettings, StudentPool, require_room
from ssdd_hub.models.features import in_parts, pre_logits
from ssdd_hub.models.pretraining import StudentTrainingSettings
from ssdd_hub.runs.machine import free_memory, kept_bytes, local_processes, require_memory, total_memory
from ssdd_hub.seeds import generators_kept

_FULL = 0.9  # of the memory, from which on a run may end by the lack of it
_BACKWARD = 1.3  # of the activations: the gradients on their way through them
_KEPT = 0.5  # of these, at most, where they are computed a second time, on a GPU
_SHOWN = 0.5  # of these, where none is kept for a backward pass
_READ = 512  # images that an evaluation reads at a time
_LOWER = {
    "set": "--distiller.num-images",
    "students": "--pool.size",
    "outer step": "--distiller.micro-batch, --distiller.memory-budget or --distiller.set-batch",
    "inner step": "--distiller.set-batch",
    "kernel": "--distiller.set-batch",
    "real images": "--distiller.batch-size",
    "scores": "--student-training.batch-size or --run.threads",
}
_IN_TURN = ("outer step", "inner step", "scores")


def check_sizes(
    settings: DistillerSettings,
    pool: PoolSettings | None,
    student: nn.Module,
    accelerator: Accelerator,
    *,
    in_chans: int,
    image_size: int,
) -> None:
    """Refuses numbers of images and students that the memory of the device cannot hold.

    Args:
        settings: The outer problem.
        pool: The online students, of methods that have any.
        student: One of the students; its head may be small.
        accelerator: The device, and how many processes share a batch.
        in_chans: Channels of the images.
        image_size: Their height and width.

    Raises:
        InputError: One batch of real images, the set with its gradient and AdamW's two moments, or the weights of the
            students with their momentum need more memory than there is, alone or together; or activations are to be
            recomputed, which the student cannot do.
    """
    image, device = 4 * prod((in_chans, image_size, image_size)), accelerator.device
    real, own = image / accelerator.num_processes, 4 * image
    require_memory("--distiller.batch-size", settings.batch_size, real, device)
    require_memory("--distiller.num-images", settings.num_images, own, device)
    needed = settings.batch_size * real + settings.num_images * own
    named, last = f"--distiller.num-images {settings.num_images} and --distiller.batch-size", settings.batch_size
    if pool is not None:
        needed += require_room(pool, student, device)
        named, last = f"{named.replace(' and', ',')} {last} and --pool.size", pool.size
    require_memory(named, last, needed / last, device)
    if settings.checkpointing:
        check_checkpointing(student)


@dataclass(frozen=True)
class MemoryPlan:
    """What a distillation will hold, in bytes for each process, and what there is in all.

    Attributes:
        parts: By name. `process` is what is held already. The two halves of a step, `outer step` and `inner step`, and
            `scores`, the pre-training and the evaluation of their students, follow one another: of their activations
            the most count on a GPU, and all on the CPU.
        total: Bytes of the device; those of the main memory for each of the machine's processes.
        device: Its kind.
    """

    parts: Mapping[str, float]
    total: int
    device: str

    @property
    def needed(self) -> float:
        """Bytes in all."""
        always = sum(size for name, size in self.parts.items() if name not in _IN_TURN)
        in_turn = [self.parts.get(name, 0) for name in _IN_TURN]
        # On the CPU, where freed memory is kept, large tensors rarely fit in between what another part has left.
        return always + (sum(in_turn) if self.device == "cpu" else max(in_turn))

    def __str__(self) -> str:
        shown = {name: f"{size / 2**30:.2f}" for name, size in self.parts.items()}
        told = ", ".join(f"{name} {size}" for name, size in shown.items())
        line = f"memory: about {self.needed / 2**30:.2f} GiB of {self.total / 2**30:.3g} ({self.device}): {told}"
        if self.needed <= _FULL * self.total:
            return line
        largest = max(_LOWER, key=lambda name: self.parts.get(name, 0))
        # On the CPU checkpoints save nothing, see `_KEPT`.
        more = " (or pass --distiller.checkpointing true)" if (largest, self.device) == ("inner step", "cuda") else ""
        return f"{line}\nit may not fit: lower {_LOWER[largest]}{more}"


def plan_memory(
    distiller: Distiller, training: StudentTrainingSettings | None = None, students: int = 1
) -> MemoryPlan | None:
    """Returns what a distiller that has done no step will hold; None of methods without online students.

    A few images pass copies of a student. No state changes, that of generators included.

    Args:
        distiller: With all that it needs.
        training: How students are pre-trained on the set for its scores; None for no scores.
        students: How many of them at the same time.
    """
    pool = getattr(distiller.method, "pool", None)
    if not isinstance(pool, StudentPool):
        return None
    settings, device = distiller.settings, distiller.engine.device
    with generators_kept(device), torch.no_grad():
        some = distiller.rendered(torch.arange(1).to(device)).detached()
    size, student = len(distiller.parameterisation), pool.students[0].module
    seen, real = min(settings.set_batch or size, size), -(-settings.batch_size // distiller.accelerator.num_processes)
    learned = sum(part.numel() * part.itemsize for part in distiller.parameterisation.parameters())
    image = some.images.nbytes + some.targets.nbytes
    weights = sum(part.numel() * part.itemsize for part in student.parameters())
    with generators_kept(device):
        images = some.images.repeat(3, 1, 1, 1)
        frozen, trained = copy.deepcopy(student).eval().requires_grad_(False), copy.deepcopy(student).train()
        with distiller.accelerator.autocast():
            outer, inner = _for_each(partial(pre_logits, frozen), images), _for_each(trained, images)
            width = pre_logits(frozen, images[:1]).shape[1]
            # So that what libraries load and keep for a backward pass is part of the process.
            with torch.enable_grad():
                (trained(images).sum() + pre_logits(frozen, images.clone().requires_grad_()).sum()).backward()
        if training:
            with training.autocast(device):
                scored = _for_each(trained, images) * min(training.batch_size, size)
    budget = free_memory(device) * SHARE if settings.memory_budget is None else settings.memory_budget * 2**30
    # Filters and their adjoints; in the inner step their gradients too, but the second pass of checkpoints has none.
    filters = transformed_bytes(student) if getattr(distiller.engine, "winograd", False) else 0
    part = min(seen, settings.micro_batch or (CPU_PART if device.type == "cpu" else seen))
    activations = outer * seen if outer * seen <= budget else max(outer, min(outer * part, budget))
    number = distiller.engine.kernel_dtype.itemsize
    side = min(seen, width + 1)
    parts = {
        "process": psutil.Process().memory_info().rss if device.type == "cpu" else torch.cuda.memory_allocated(device),
        # Its gradient and the moments; the images of a step and their gradient.
        "set": learned * (2 if settings.optimizer == "sgd" else 3) + 2 * seen * image,
        # Gradient and moments of each, and copies that the engine computes with.
        "students": weights * (pool.settings.size * (3 if pool.settings.optimizer == "adam" else 2) + 2),
        "outer step": _BACKWARD * activations + 2 * filters,
        "inner step": _BACKWARD * inner * seen * (_KEPT if settings.checkpointing and device.type != "cpu" else 1)
        + (0 if settings.checkpointing else 3 * filters),
        # Features and their gradients; the system, its factors and its gradient; the kernel of real images.
        "kernel": number * (2 * (seen + real) * width + 4 * side**2 + 2 * real * side + 2 * seen * side),
        "real images": 2 * real * image,
    }
    if training:
        shown = len(in_parts(some.images.expand(_READ, -1, -1, -1))[0])
        parts["scores"] = students * (_BACKWARD * scored + _SHOWN * outer * shown)
    total = total_memory(device) // (local_processes() if device.type == "cpu" else 1)
    return MemoryPlan(parts, total, device.type)


def _for_each(forward: nn.Module | partial[Tensor], images: Tensor) -> int:
    """Returns the bytes of activations that each image adds."""
    return max(1, kept_bytes(forward, images) - kept_bytes(forward, images[:2]))
