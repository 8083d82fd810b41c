"""Folders of small images whose red channel, or grey, tells which one it is, and both ways to read them."""

import base64
import io
import json
import tarfile
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image as ImageFeature
from PIL import Image

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.data.stream import ImageStream
from ssdd_hub.errors import InputError

IMAGES = Features({"image": ImageFeature()})
STRUCTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGE_CARD = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n---\n"


def flat(value, size=8):
    """An image in colours `(r, g, b)` or grey."""
    return Image.new("RGB" if isinstance(value, tuple) else "L", (size, size), value)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(value, size=8):
    """The PNG file of a red image, or of `flat`; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    return encode(flat(value if isinstance(value, tuple) else (value, 0, 0), size))


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def pictures(folder, count=3):
    """A folder of images with the values from 0 on."""
    folder.mkdir(exist_ok=True)
    for value in range(count):
        write(folder / f"{value}.png", picture(value))
    return folder


def save_folder(folder, values, size=8):
    for index, value in enumerate(values):
        write(folder / f"{index:03}.png", value if isinstance(value, bytes) else encode(flat(value, size)))
    return folder


def write_card(folder, configs, name="README.md"):
    """Writes metadata of a dataset as JSON, which is YAML."""
    text = json.dumps({"configs": configs})
    return write(folder / name, text if name.endswith(".yaml") else f"---\n{text}\n---\n")


def save_as(folder, layout, contents):
    """Writes encoded images, by name, in one of several layouts."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": name} for name, content in contents.items()]
    if layout == "folder":
        for name, content in contents.items():
            write(folder / name, content)
    elif layout == "zip":
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif layout == "tar":
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    elif layout == "saved":
        Dataset.from_dict({"image": rows}, IMAGES).save_to_disk(folder)
    elif layout in ("parquet", "binary"):
        images = pa.array(list(contents.values())) if layout == "binary" else pa.array(rows, STRUCTURE)
        pq.write_table(pa.table({"image": images}), folder / "train.parquet")
    else:
        texts = [base64.b64encode(content).decode() for content in contents.values()]
        rows = [json.dumps({"image": f"data:{layout};base64,{text}"}) for text in texts]
        write(folder / "train.jsonl", "\n".join(rows))
    return folder


def banks_of(folder, seed=0, **settings):
    """Source and held-out images of a folder."""
    return load_images(DataSettings(name=str(folder), **settings), seed, progress=False)


def stream_of(folder, **settings):
    return ImageStream(DataSettings(name=str(folder), streaming=True, **settings), progress=False)


def read(images):
    """All pixels of a stream."""
    return torch.stack([row() for row in images.rows()])


def reds(images):
    """The first value of each image, of a bank or a stream."""
    pixels = images.pixels if hasattr(images, "pixels") else read(images)
    return pixels[:, 0, 0, 0].tolist()


def load(folder, **settings):
    """The values of all images of a folder, ascending."""
    return sorted(sum(map(reds, banks_of(folder, **settings)), []))


def stream(folder, **settings):
    """The same, read as a stream."""
    return sorted(reds(stream_of(folder, **settings)))


def refuses(read, message, *args, **settings):
    with pytest.raises(InputError, match=message):
        read(*args, **settings)


def refused(folder, message, **settings):
    """Both ways to read a folder refuse it, at once."""
    for read in (load, stream):
        start = time.monotonic()
        refuses(read, message, folder, **settings)
        assert time.monotonic() - start < 20
