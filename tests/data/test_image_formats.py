"""Only listed decoders run, wherever an image comes from."""

import base64
import io
import json
import os
import struct
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from huggingface_hub import HfApi, constants
from PIL import EpsImagePlugin, Image

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.data.decode import FORMATS, CorruptImageError, decode_image
from ssdd_hub.data.stream import ImageStream
from ssdd_hub.errors import InputError

# `datasets` leaves some of the files that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The file that a program called `gs` leaves when it is started, and Pillow opening nothing unasked."""
    mark, programs = tmp_path / "started", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho started > '{mark}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    # Pillow remembers whether there is one.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def encode(kind="PNG", image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(file, kind, **options)
    return file.getvalue()


EPS = encode("EPS")


def test_the_program_would_be_started(started):
    with pytest.raises(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert started.exists()


def small(value):
    return encode(image=Image.new("RGB", (8, 8), (value, 0, 0)))


def build(folder, form):
    """A dataset of five images, one of which is PostScript whatever it is called."""
    contents = {f"{index}.png": small(index) for index in range(4)} | {"4.jpg": EPS}
    if form == "eps":
        contents["4.eps"] = contents.pop("4.jpg")
    elif form == "no ending":
        contents["4"] = contents.pop("4.jpg")
    folder.mkdir()
    if form in ("jpg", "eps", "no ending"):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        if form == "no ending":
            rows = "".join(json.dumps({"file_name": name}) + "\n" for name in contents)
            (folder / "metadata.jsonl").write_text(rows)
    elif form == "zip":
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    elif form == "tar":
        with tarfile.open(folder / "images.tar", "w") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(f"{name[0]}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    elif form == "saved":
        rows = [{"bytes": content, "path": name} for name, content in contents.items()]
        Dataset.from_dict({"image": rows}, datasets.Features({"image": datasets.Image()})).save_to_disk(folder)
    elif form in ("parquet", "parquet features", "binary"):
        rows = [{"bytes": content, "path": name} for name, content in contents.items()]
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        if form == "binary":
            rows, kind = list(contents.values()), pa.binary()
        pq.write_table(pa.table({"image": pa.array(rows, kind)}), folder / "train.parquet")
        if form != "parquet":
            (folder / "README.md").write_text(
                "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n---\n"
            )
    else:
        texts = [base64.b64encode(content).decode() for content in contents.values()]
        mime = "application/postscript" if form == "named" else "image/png"
        rows = [{"image": f"data:{mime};base64,{text}"} for text in texts]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "README.md").write_text("---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n---\n")
    return folder


FORMS = ["jpg", "eps", "no ending", "zip", "tar", "saved", "parquet", "parquet features", "binary", "base64", "named"]


@pytest.mark.parametrize("form", FORMS)
def test_postscript_starts_nothing_and_is_named_and_skipped(tmp_path, started, monkeypatch, form):
    folder, opened, plain_open = build(tmp_path / "set", form), [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(options) or plain_open(*args, **options))
    settings = DataSettings(name=str(folder), on_corrupt="skip", heldout_fraction=0.4)
    banks = load_images(settings, progress=False)
    assert sorted(sum((bank.pixels[:, 0, 0, 0].tolist() for bank in banks), [])) == [0, 1, 2, 3]
    assert sum(bank.source["num_skipped"] for bank in banks) == 1
    reason = sum((bank.source["skipped"] for bank in banks), [])[0]
    assert "PostScript (EPS), which is not accepted; convert it to one of AVIF, BMP, GIF, JPEG," in reason
    stream = ImageStream(DataSettings(name=str(folder), on_corrupt="skip", streaming=True), progress=False)
    values = []
    for row in stream.rows():
        try:
            values.append(row()[0, 0, 0].item())
        except CorruptImageError as error:
            values.append(str(error).split(": ")[-1].split(",")[0])
    assert values == [0, 1, 2, 3, "PostScript (EPS)"]
    with pytest.raises(InputError, match=r"cannot be decoded \(PostScript \(EPS\), which is not accepted; convert"):
        load_images(DataSettings(name=str(folder), heldout_fraction=0.2), progress=False)
        load_images(DataSettings(name=str(folder), heldout_fraction=0.2), seed=1, progress=False)
    assert not started.exists()
    assert opened and all("EPS" not in options["formats"] for options in opened)


@pytest.mark.parametrize("form", ["jpg", "zip", "parquet"])
def test_postscript_on_the_hub_starts_nothing(hub, tmp_path, started, monkeypatch, form):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", constants.ENDPOINT)
    api = HfApi(token="hf_ann")
    api.create_repo("ann/set", repo_type="dataset")
    api.upload_folder(folder_path=build(tmp_path / "set", form), repo_id="ann/set", repo_type="dataset")
    stream = ImageStream(DataSettings(name="ann/set", on_corrupt="skip", streaming=True), progress=False)
    rows = list(stream.rows())
    assert [row()[0, 0, 0].item() for row in rows[:4]] == [0, 1, 2, 3]
    with pytest.raises(CorruptImageError, match=r"row 4 \(4.jpg\): PostScript \(EPS\), which is not accepted"):
        rows[4]()
    banks = load_images(DataSettings(name="ann/set", on_corrupt="skip", heldout_fraction=0.4), progress=False)
    assert sum(bank.source["num_skipped"] for bank in banks) == 1 and sum(map(len, banks)) == 4
    assert not started.exists()


def wmf():
    return b"\xd7\xcd\xc6\x9a" + bytes(2) + struct.pack("<4hH", 0, 0, 10, 10, 1440) + bytes(4) + b"\x01\x00\x09\x00"


EXOTIC = {
    "PostScript (EPS)": encode("EPS"),
    "Photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(40),
    "Windows metafile (WMF)": wmf(),
    "Windows metafile (EMF)": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =   8".ljust(80) + b"END".ljust(2720),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GRIB": b"GRIB\0\0\0\1" + bytes(100),
    "BUFR": b"BUFR" + bytes(100),
    "ICNS": encode("ICNS"),
    "ICO": encode("ICO"),
    "XV thumbnail": b"P7 332\n#END_OF_COMMENTS\n4 4 255\n" + bytes(16),
    "MPEG": b"\x00\x00\x01\xb3" + bytes(20),
    "PDF": encode("PDF"),
}


@pytest.mark.parametrize("name", EXOTIC)
def test_what_is_not_listed_is_named(name, started):
    with pytest.raises(CorruptImageError) as caught:
        decode_image(EXOTIC[name])
    assert name in str(caught.value) and "which is not accepted; convert it to one of" in str(caught.value)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "XBM", "MSP", "DDS", "SPIDER", "DIB", "BLP"])
def test_what_is_not_listed_is_not_decoded(kind):
    image = Image.fromarray(NOISE)
    modes = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}
    with pytest.raises(CorruptImageError, match="in no accepted format; convert it to one of AVIF, BMP, .*, WEBP$"):
        decode_image(encode(kind, image.convert(modes.get(kind, "RGB"))))


@pytest.mark.parametrize("kind", FORMATS)
def test_all_listed_formats_are_decoded(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    ramp = Image.fromarray(np.linspace((0, 30, 60), (200, 220, 250), 16, axis=0).astype(np.uint8)[None].repeat(16, 0))
    result = np.asarray(decode_image(encode(kind, ramp, **options)).convert("RGB"), float)
    assert np.abs(result - np.asarray(ramp)).max() < 20


@pytest.mark.parametrize(
    "name", ["multi-picture", "animated PNG", "animated GIF", "raw codestream", "1-bit map", "text map"]
)
def test_relatives_of_listed_formats_are_decoded(name):
    image, other = Image.fromarray(NOISE), Image.new("RGB", (16, 16), (1, 2, 3))
    content = {
        "multi-picture": lambda: encode("MPO", image, save_all=True, append_images=[other]),
        "animated PNG": lambda: encode("PNG", image, save_all=True, append_images=[other]),
        "animated GIF": lambda: encode("GIF", image, save_all=True, append_images=[other]),
        "raw codestream": lambda: encode("JPEG2000", image, no_jp2=True),
        "1-bit map": lambda: encode("PPM", image.convert("1")),
        "text map": lambda: b"P2\n2 2\n255\n0 50 100 200\n",
    }[name]()
    size = (2, 2) if name == "text map" else (16, 16)
    assert decode_image(content).size == size
