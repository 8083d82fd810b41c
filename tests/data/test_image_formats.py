"""Only listed decoders run, wherever an image comes from."""

import io
import json
import os
import struct

import numpy as np
import pytest
from data_folders import IMAGE_CARD, banks_of, encode, picture, reds, save_as, stream_of, write
from PIL import EpsImagePlugin, Image

from ssdd_hub.data.decode import FORMATS, CorruptImageError, decode_image
from ssdd_hub.errors import InputError

# `datasets` leaves some of the files that it reads open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
EPS = encode(NOISE, "EPS")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The file that a program called `gs` leaves when it is started."""
    mark, programs = tmp_path / "started", tmp_path / "bin"
    write(programs / "gs", f"#!/bin/sh\necho started > '{mark}'\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    # Pillow remembers whether there is one.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


def test_the_program_would_be_started(started):
    with pytest.raises(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert started.exists()


# Layout, name of the PostScript file, and what is written beside the data.
FORMS = {
    "jpg": ("folder", "4.jpg", None),
    "eps": ("folder", "4.eps", None),
    "no ending": ("folder", "4", "metadata.jsonl"),
    "zip": ("zip", "4.jpg", None),
    "tar": ("tar", "4.jpg", None),
    "saved": ("saved", "4.jpg", None),
    "parquet": ("parquet", "4.jpg", None),
    "parquet features": ("parquet", "4.jpg", "README.md"),
    "binary": ("binary", "4.jpg", "README.md"),
    "base64": ("image/png", "4.jpg", "README.md"),
    "named": ("application/postscript", "4.jpg", "README.md"),
}


def build(folder, form):
    """A dataset of five images, one of which is PostScript whatever it is called."""
    layout, name, beside = FORMS[form]
    contents = {f"{index}.{'jpg' if layout == 'tar' else 'png'}": picture(index) for index in range(4)} | {name: EPS}
    if beside:
        rows = "".join(json.dumps({"file_name": name}) + "\n" for name in contents)
        write(folder / beside, IMAGE_CARD if beside == "README.md" else rows)
    return save_as(folder, layout, contents)


@pytest.mark.parametrize("form", FORMS)
def test_postscript_starts_nothing_and_is_named_and_skipped(tmp_path, started, monkeypatch, form):
    folder, opened, plain_open = build(tmp_path / "set", form), [], Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(options) or plain_open(*args, **options))
    banks = banks_of(folder, on_corrupt="skip", heldout_fraction=0.4)
    assert sorted(sum(map(reds, banks), [])) == [0, 1, 2, 3]
    assert sum(bank.provenance["num_skipped"] for bank in banks) == 1
    reason = sum((bank.provenance["skipped"] for bank in banks), [])[0]
    assert "PostScript (EPS), which is not accepted; convert it to one of AVIF, BMP, GIF, JPEG," in reason
    *rows, last = stream_of(folder, on_corrupt="skip").rows()
    assert [row()[0, 0, 0].item() for row in rows] == [0, 1, 2, 3]
    with pytest.raises(CorruptImageError, match=r"row 4.*: PostScript \(EPS\), which is not accepted"):
        last()
    with pytest.raises(InputError, match=r"cannot be decoded \(PostScript \(EPS\), which is not accepted; convert"):
        banks_of(folder, heldout_fraction=0.2)
    assert not started.exists()
    assert opened and all("EPS" not in options["formats"] for options in opened)


@pytest.mark.parametrize("form", ["jpg", "zip", "parquet"])
def test_postscript_on_the_hub_starts_nothing(hub_set, tmp_path, started, form):
    hub_set(build(tmp_path / "set", form))
    *rows, last = stream_of("ann/set", on_corrupt="skip").rows()
    assert [row()[0, 0, 0].item() for row in rows] == [0, 1, 2, 3]
    with pytest.raises(CorruptImageError, match=r"row 4 \(4.jpg\): PostScript \(EPS\), which is not accepted"):
        last()
    banks = banks_of("ann/set", on_corrupt="skip", heldout_fraction=0.4)
    assert sum(bank.provenance["num_skipped"] for bank in banks) == 1 and sum(map(len, banks)) == 4
    assert not started.exists()


EXOTIC = {
    "PostScript (EPS)": EPS,
    "Photoshop": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(40),
    "Windows metafile (WMF)": b"\xd7\xcd\xc6\x9a"
    + bytes(2)
    + struct.pack("<4hH", 0, 0, 10, 10, 1440)
    + bytes(4)
    + b"\1\0\x09\0",
    "Windows metafile (EMF)": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =   8".ljust(80) + b"END".ljust(2720),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GRIB": b"GRIB\0\0\0\1" + bytes(100),
    "BUFR": b"BUFR" + bytes(100),
    "ICNS": encode(NOISE, "ICNS"),
    "ICO": encode(NOISE, "ICO"),
    "XV thumbnail": b"P7 332\n#END_OF_COMMENTS\n4 4 255\n" + bytes(16),
    "MPEG": b"\x00\x00\x01\xb3" + bytes(20),
    "PDF": encode(NOISE, "PDF"),
}


@pytest.mark.parametrize("name", EXOTIC)
def test_what_is_not_listed_is_named(name, started):
    with pytest.raises(CorruptImageError) as caught:
        decode_image(EXOTIC[name])
    assert name in str(caught.value) and "which is not accepted; convert it to one of" in str(caught.value)
    assert not started.exists()


@pytest.mark.parametrize("kind", ["TGA", "PCX", "SGI", "XBM", "MSP", "DDS", "SPIDER", "DIB", "BLP"])
def test_what_is_not_listed_is_not_decoded(kind):
    modes = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}
    with pytest.raises(CorruptImageError, match="(in no|not) accepted.*; convert it to one of AVIF, BMP, .*, WEBP$"):
        decode_image(encode(NOISE.convert(modes.get(kind, "RGB")), kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_all_listed_formats_are_decoded(kind):
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    ramp = Image.fromarray(np.linspace((0, 30, 60), (200, 220, 250), 16, axis=0).astype(np.uint8)[None].repeat(16, 0))
    result = np.asarray(decode_image(encode(ramp, kind, **options)).convert("RGB"), float)
    assert np.abs(result - np.asarray(ramp)).max() < 20


FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (16, 16), (1, 2, 3))]}
RELATIVES = {
    "multi-picture": encode(NOISE, "MPO", **FRAMES),
    "animated PNG": encode(NOISE, "PNG", **FRAMES),
    "animated GIF": encode(NOISE, "GIF", **FRAMES),
    "raw codestream": encode(NOISE, "JPEG2000", no_jp2=True),
    "1-bit map": encode(NOISE.convert("1"), "PPM"),
    "text map": b"P2\n2 2\n255\n0 50 100 200\n",
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_of_listed_formats_are_decoded(name):
    assert decode_image(RELATIVES[name]).size == ((2, 2) if name == "text map" else (16, 16))
