"""What a distillation holds in memory at least, checked before its work starts."""

from math import prod

from accelerate import Accelerator
from torch import nn

from ssdd_hub.distill.distiller import DistillerSettings
from ssdd_hub.distill.pool import PoolSettings, require_room
from ssdd_hub.runs.machine import require_memory


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
            students with their momentum need more memory than there is.
    """
    image, device = 4 * prod((in_chans, image_size, image_size)), accelerator.device
    require_memory("--distiller.batch-size", settings.batch_size, image / accelerator.num_processes, device)
    require_memory("--distiller.num-images", settings.num_images, 4 * image, device)
    if pool is not None:
        require_room(pool, student, device)
