"""Image bytes of dataset rows, read only from files that belong to the dataset."""

import base64
import binascii
import os
import stat
import zlib
from lzma import LZMAError
from tarfile import TarError
from typing import Any
from urllib.parse import unquote_to_bytes
from zipfile import BadZipFile

from ssdd_hub.data.dataset_home import Home, Place
from ssdd_hub.data.decode import CorruptImageError
from ssdd_hub.errors import InputError
from ssdd_hub.text import first_line

LARGEST_FILE = 2**30  # bytes; what Pillow decodes is smaller even without compression

BROKEN_ARCHIVE = (BadZipFile, EOFError, LZMAError, TarError, zlib.error)
"""What damaged archives raise."""


def read_row(home: Home, where: str, content: bytes | None, path: str | None) -> bytes:
    """Reads the file of the row that messages call `where`.

    Its content is in the row, or at `path`: a path, the address of a member of an archive or of a file on the Hub, or
    a `data:` URL, which is the content itself. A `CorruptImageError` means that there is no such file, that it is too
    large, or that its archive is damaged; other paths and what cannot be reached are an `InputError`.
    """
    if content is not None:
        return content
    if not path:
        raise CorruptImageError("the row holds no image")
    if path.startswith("data:"):
        return _inline(path)
    place = home.find(path)
    if place is None:
        raise InputError(f"the image at {where} has the path {path!r}: {home.required}")
    home.check_link(f"the image at {where}", place.file)
    try:
        if os.path.isabs(place.file) and not stat.S_ISREG(os.stat(place.file).st_mode):
            # Opening a pipe would wait, and a device may never end.
            raise InputError(f"the image at {where} must be a regular file, and {path!r} is none: repair or remove it")
        return _fetch(home, place)
    except (InputError, CorruptImageError):
        raise
    except Exception as error:  # each way to the Hub or into an archive raises its own kinds
        text = getattr(error, "strerror", None) or first_line(error)
        reason = f"{type(error).__name__}: {text}"
        if isinstance(error, BROKEN_ARCHIVE) or _is_missing(error):
            raise CorruptImageError(reason) from error
        problem = f"the image at {where} cannot be read ({reason})"
        raise InputError(f"{problem}: the same command goes on where it stopped") from error


def _fetch(home: Home, place: Place) -> bytes:
    from datasets.utils.file_utils import xopen
    from fsspec.core import url_to_fs

    if os.path.isabs(place.file) and not place.protocol:
        with open(place.file, "rb") as opened:
            return _read(opened)
    file = home.plain(place.file)
    address = f"{place.protocol}://{place.member}::{file}" if place.protocol else file
    if "*" not in address and "::" not in place.member:
        with xopen(address, "rb") as opened:
            return _read(opened)
    # `xopen` would take such a name for a pattern, or for the way into a further archive.
    files, inside = url_to_fs(f"{place.protocol}://::{file}" if place.protocol else file)
    with files.open(place.member if place.protocol else inside, "rb") as opened:
        return _read(opened)


def _read(opened: Any) -> bytes:
    # A member of an archive can be a thousand times larger than the archive.
    content = bytearray()
    while part := opened.read(2**20):
        content += part
        if len(content) > LARGEST_FILE:
            raise CorruptImageError(f"image files must be of at most {LARGEST_FILE} bytes, and it is larger")
    return bytes(content)


def _inline(path: str) -> bytes:
    kind, _, text = path.partition(",")
    try:
        content = unquote_to_bytes(text)
        return base64.b64decode(content, validate=True) if kind.endswith(";base64") else content
    except binascii.Error as error:
        raise CorruptImageError(f"a data: URL must hold base64 text ({error})") from error


def _is_missing(error: BaseException) -> bool:
    """Whether a file is known not to exist; without a connection, the Hub and fsspec call it not found too."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if isinstance(error, EntryNotFoundError):
        return not isinstance(error, LocalEntryNotFoundError)
    cause = error.__cause__  # in an archive, a KeyError
    return isinstance(error, FileNotFoundError | KeyError | NotADirectoryError) and (
        cause is None or _is_missing(cause)
    )
