"""Images: in memory, streamed, decoded, augmented."""

from ssdd_hub.data.augment import augment_dsa, crop_flip, draw_views
from ssdd_hub.data.bank import DataSettings, ImageBank, draw_heldout, load_images
from ssdd_hub.data.decode import CorruptImageError, decode_image
from ssdd_hub.data.sources import DatasetSource
from ssdd_hub.data.stream import ImageStream

__all__ = [
    "CorruptImageError",
    "DataSettings",
    "DatasetSource",
    "ImageBank",
    "ImageStream",
    "augment_dsa",
    "crop_flip",
    "decode_image",
    "draw_heldout",
    "draw_views",
    "load_images",
]
