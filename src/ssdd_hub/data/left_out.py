"""Image files that `datasets` leaves out without a word: each is named, with the reason."""

import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from zipfile import ZipFile

from ssdd_hub.data.dataset_card import list_configs, list_patterns
from ssdd_hub.data.dataset_home import Home, printable
from ssdd_hub.data.local_home import LocalHome
from ssdd_hub.data.row_files import BROKEN_ARCHIVE
from ssdd_hub.errors import InputError
from ssdd_hub.text import first_line

# By names alone: most other files of a folder of images are no images, and nobody takes them for some.
_IMAGE = re.compile(
    r"\.(a?png|avif|bmp|dib|gif|heic|heif|jfif|jp2|j2k|jpe|jpe?g|jxl|p[bgnp]m|qoi|tiff?|webp)$", re.IGNORECASE
)
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|rar|7z|tar\.\w+)$", re.IGNORECASE)
_WITH_LABELS = re.compile(r"\.(cls|json|txt)$")
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/|__pycache__/|lost\+found$)")
_INDEX = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def has_index(files: Iterable[str]) -> bool:
    """Whether files of metadata decide which images are read."""
    return any(os.path.basename(file) in _INDEX for file in files)


def image_files(home: Home) -> list[str]:
    """Returns the names of a dataset's image files, for messages."""
    return [printable(name) for name in home.files() if _IMAGE.search(name) and not _HIDDEN.search(name)]


def find_left_out(home: Home, loaded: Iterable[str], splits: Sequence[str] = ()) -> list[str]:
    """Returns a text for each image file or archive of a folder of images that is not among the `loaded` paths.

    A card that states which files belong to the dataset leaves others out on purpose.
    """
    if any(list_patterns(config) for card in home.cards for config in list_configs(card)):
        return []
    kept = {inside for path in loaded if (inside := home.inside(path)) is not None}
    names = [name for name in home.files() if name not in kept and not _HIDDEN.search(name)]
    listed = has_index(name for name in home.files())
    return [f"{printable(name)} ({why})" for name in names if (why := _why(home, name, splits, listed))]


def refuse_left_out(dataset: str, texts: Sequence[str]) -> InputError:
    """Returns the error that names files that are left out."""
    more = f", and {len(texts) - 5} more" if len(texts) > 5 else ""
    return InputError(
        f"{len(texts)} files of '{dataset}' would be left out: {', '.join(texts[:5])}{more}; change or remove them, "
        "or pass --data.on-corrupt skip"
    )


def check_archives(home: LocalHome, files: Iterable[str], with_labels: bool) -> None:
    """Refuses archives of a folder of images where the names of folders, in them or beside, would tell classes."""
    names = [name for file in files if (name := home.inside(file)) is not None]
    beside = {os.path.dirname(name) for name in names if _IMAGE.search(name)}
    for name in filter(_ARCHIVE.search, names):
        is_zip = name.lower().endswith(".zip")
        if not is_zip and not with_labels:  # reading the names in a tar file takes as long as reading the images
            continue
        try:
            members = _members(str(home.folder / name), is_zip)
        except (OSError, ValueError, *BROKEN_ARCHIVE) as error:
            raise _unpack(home, name, f"cannot be read ({first_line(error)})") from error
        folders = {os.path.dirname(member) for member in members if _IMAGE.search(member)}
        # WebDataset has labels of its own.
        labelled = not is_zip and any(map(_WITH_LABELS.search, members))
        if not labelled and (len(folders) > 1 or folders and len(beside) > 1):
            raise _unpack(home, name, "holds class folders, or lies beside some, and their names would be lost")


def _members(file: str, is_zip: bool) -> list[str]:
    if is_zip:
        with ZipFile(file) as archive:
            return archive.namelist()
    with tarfile.open(file) as archive:
        return archive.getnames()


def _unpack(home: LocalHome, name: str, problem: str) -> InputError:
    return InputError(f"the archive '{printable(name)}' of '{home.name}' {problem}: unpack it into the folder")


def _why(home: Home, name: str, splits: Sequence[str], listed: bool) -> str | None:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if home.is_dangling(name):
        return "a link that leads to nothing"
    if _ARCHIVE.search(name) and home.is_file(name):
        return "an archive, which is not read: unpack it"
    if home.is_closed(name):
        return "a folder that cannot be listed: change its permissions"
    ending = os.path.splitext(name)[1].lower()
    if not _IMAGE.search(name) or not home.is_file(name):
        return None
    if ending not in ImageFolder.EXTENSIONS:
        return f"{ending} files are not read from folders: convert it to PNG"
    if listed:
        return "no file of metadata lists it"
    return f"in none of the splits {', '.join(splits)}, after which other files or folders are named"
