"""Image files, splits and classes that `datasets` leaves out without a word: each is named, with the reason."""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from typing import Any
from zipfile import ZipFile

from ssdd_hub.data.dataset_home import Home, printable
from ssdd_hub.data.local_home import LocalHome
from ssdd_hub.data.row_files import BROKEN_ARCHIVE
from ssdd_hub.errors import InputError
from ssdd_hub.text import first_line

_IMAGE = re.compile(
    r"\.(a?png|arw|avif|bmp|cr2|cr3|dcm|dib|dng|exr|gif|heic|heif|jfif|jp2|j2k|jpe|jpe?g|jxl|nef|orf|p[bgnp]m|qoi|raf"
    r"|rw2|svg|tiff?|webp)$",
    re.IGNORECASE,
)
# The first bytes of image files, for names that do not tell.
_START = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|II\*\0|MM\0\*|qoif|RIFF....WEBP|....(jP  |ftyp(avi[fs]|hei[cxms]|mif1|msf1|crx))",
    re.DOTALL,
)
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|rar|7z|tar\.\w+)$", re.IGNORECASE)
_WITH_LABELS = re.compile(r"\.(cls|json|txt)$")
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/|__pycache__/|lost\+found$)")
_SHARD = re.compile(r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]{16})?(?P<end>\.\w+)")
_UNLISTED = "no file of metadata lists it"
_INDEX = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def has_index(files: Iterable[str]) -> bool:
    """Whether files of metadata decide which images are read."""
    return any(os.path.basename(file) in _INDEX for file in files)


def image_files(home: Home) -> list[str]:
    """Returns the names of a dataset's image files, for messages."""
    return [printable(name) for name in home.files() if _IMAGE.search(name) and not _HIDDEN.search(name)]


def find_left_out(
    home: Home, files: Sequence[str], paths: Iterable[str] = (), splits: Sequence[str] = ()
) -> list[str]:
    """Returns a text for each image file, archive or file of metadata of a folder of images that is not read.

    `files` are the data files of the dataset, and `paths` those of all its images, which are asked for where metadata
    decides. A card that states which files belong to the dataset leaves others out on purpose.
    """
    if home.patterns:
        return []
    inside = {file: name for file in files if (name := home.inside(file)) is not None}
    zips = {name: _visible(home, name) for name in inside.values() if name.lower().endswith(".zip")}
    listed = has_index(files) or any(map(has_index, zips.values()))
    loaded = [*paths, *(file for file in files if not _is_read(file))] if listed else files
    kept = {inside.get(path) or _name(home, path) for path in loaded}
    names = [name for name in home.files() if name not in kept and not _HIDDEN.search(name)]
    found = [f"{printable(name)} ({why})" for name in names if (why := _why(home, name, splits, listed))]
    members = [f"{name}/{member}" for name, members in zips.items() for member in members if _IMAGE.search(member)]
    return found + [f"{printable(name)} ({_UNLISTED})" for name in members if listed and name not in kept]


def check_split_names(home: Home) -> None:
    """Refuses folders and files that are called like splits but for capital letters: `datasets` makes one of them."""
    from datasets.data_files import SPLIT_KEYWORDS

    splits = {word: split for split, words in SPLIT_KEYWORDS.items() for word in words}
    places = {name for name in home.files() if not _HIDDEN.search(name)}
    for place in list(places):
        while (place := os.path.dirname(place)) and place not in places:
            places.add(place)
    named: dict[str, dict[str, str]] = {}  # in each folder, the split and what is called so
    for folder, name in map(os.path.split, sorted(places)):
        if split := splits.get(name.partition(".")[0].lower()):
            named.setdefault(folder, {})[split] = name
    for names in named.values():
        if len(names) > 1:
            raise InputError(
                f"{' and '.join(repr(printable(name)) for name in names.values())} of '{home.name}' are called like "
                "splits, which must be in lower-case letters: rename them, or name their files in a card"
            )


def check_class_folders(home: Home, split: Iterable[str], files: Iterable[str]) -> None:
    """Refuses several folders of images of a split that became no classes.

    Whether they do is decided by the `files` of all splits: their last folders must be at one depth.
    """
    if len({os.path.dirname(file) for file in split if _is_read(file)}) > 1:
        names = [home.inside(file) or "" for file in files if _is_read(file)]
        folders = Counter(os.path.dirname(name) or "." for name in names).most_common()[::-1]
        shown = ", ".join(f"'{printable(name)}' with {count}" for name, count in folders[:5])
        more = f", and {len(folders) - 5} more" if len(folders) > 5 else ""
        raise InputError(
            f"the images of '{home.name}' lie in several folders ({shown}{more}), of which no classes can be made: "
            "move each image directly into a folder that is called like its class, all at one depth, or pass "
            "--data.label-column none"
        )


def _is_read(file: str) -> bool:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return os.path.splitext(file)[1].lower() in ImageFolder.EXTENSIONS


def _name(home: Home, path: str) -> str | None:
    """Returns the name within the dataset of an image, also in an archive."""
    place = home.find(path) if "::" in path else None
    name = home.inside(place.file if place else path)
    return f"{name}/{place.member}" if name and place and place.protocol else name


def _visible(home: Home, archive: str) -> list[str]:
    """Returns the members of a zip file; none where it is not in a folder, or cannot be read."""
    try:
        members = _members(str(home.folder / archive), True) if isinstance(home, LocalHome) else []
    except (OSError, ValueError, *BROKEN_ARCHIVE):  # reading it reports what is wrong
        return []
    return [member for member in members if not _HIDDEN.search(member)]


def describe_files(home: LocalHome) -> str:
    """Returns what a folder without images holds, and what it must hold, for messages."""
    if home.patterns:
        return (
            f"its card names {', '.join(map(repr, home.patterns[:5]))} as data, and no file is called so: correct it"
        )
    names = [os.path.basename(name) for name in home.files() if not _HIDDEN.search(name)]
    kinds = Counter(os.path.splitext(name)[1] or "no ending" for name in names).most_common(5)
    shown = ", ".join(f"{count} of {printable(ending)}" for ending, count in kinds)
    found = f"its files are {shown}" if kinds else "it holds no files"
    return (
        f"{found}; it must hold image files, or tables in Parquet, "
        "Arrow, CSV, JSON or WebDataset with a column of images; arrays become image files by "
        "PIL.Image.fromarray(array).save('0.png'), or are the argument of ssdd_hub.distill"
    )


def refuse_left_out(dataset: str, texts: Sequence[str]) -> InputError:
    """Returns the error that names files that are left out."""
    more = f", and {len(texts) - 5} more" if len(texts) > 5 else ""
    return InputError(
        f"{len(texts)} files of '{dataset}' would be left out: {', '.join(texts[:5])}{more}; change or remove them, "
        "or pass --data.on-corrupt skip"
    )


def check_archives(home: LocalHome, files: Iterable[str], with_labels: bool) -> None:
    """Refuses archives of a folder of images that are damaged, or of which the names of folders would tell classes.

    In a damaged tar file those that read it take a header that is none for the end, without a word.
    """
    names = [name for file in files if (name := home.inside(file)) is not None]
    beside = {os.path.dirname(name) for name in names if _IMAGE.search(name)}
    for name in filter(_ARCHIVE.search, names):
        is_zip = name.lower().endswith(".zip")
        try:
            members = _members(str(home.folder / name), is_zip)
        except (OSError, ValueError, *BROKEN_ARCHIVE) as error:
            raise InputError(
                f"the archive '{printable(name)}' of '{home.name}' cannot be read ({first_line(error)}): write it or "
                "fetch it again, or unpack what is whole into the folder"
            ) from error
        folders = {
            os.path.dirname(member) for member in members if _IMAGE.search(member) and not _HIDDEN.search(member)
        }
        # WebDataset has labels of its own.
        labelled = not is_zip and any(map(_WITH_LABELS.search, members))
        if (is_zip or with_labels) and not labelled and (len(folders) > 1 or folders and len(beside) > 1):
            raise _unpack(home, name, "holds class folders, or lies beside some, and their names would be lost")


def check_shards(home: LocalHome, files: Iterable[str]) -> None:
    """Refuses files that are called like parts of a whole, `train-00000-of-00003.parquet`, where others are missing.

    A card that names files one by one leaves others out on purpose; one with a pattern, as on the Hub, wants them all.
    """
    parts: dict[tuple[str, int, str], set[int]] = {}
    for name in filter(None, map(home.inside, files)):
        if match := _SHARD.fullmatch(name):
            parts.setdefault((match["start"], int(match["total"]), match["end"]), set()).add(int(match["number"]))
    for (start, total, end), found in parts.items():
        first = int(total in found)
        absent = [f"{start}-{n:05}-of-{total:05}{end}" for n in range(first, first + total) if n not in found]
        wanted = [pattern.removeprefix("./").removesuffix("/") for pattern in home.patterns] or ["*"]
        missing = [
            name for name in absent if any(fnmatch(name, f"{each}{more}") for each in wanted for more in ("", "/*"))
        ]
        if missing:
            named = ", ".join(f"'{printable(name)}'" for name in missing[:5])
            more = f", and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise InputError(
                f"{len(missing)} of {total} files of '{home.name}' are missing: {named}{more}; fetch them, or name "
                "the files that are to be read in a card, one by one"
            )


class _Member(tarfile.TarInfo):
    """A member of a tar file, which notes the header at which the file ends."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.ended = type(error).__name__
            raise


def _members(file: str, is_zip: bool) -> list[str]:
    """Returns the names in an archive; raises a `TarError` for a tar file that does not end as tar files do."""
    if is_zip:
        with ZipFile(file) as archive:
            return archive.namelist()
    with tarfile.open(file, tarinfo=_Member) as members:
        names = members.getnames()
        if vars(members).get("ended") != "EOFHeaderError":
            raise tarfile.ReadError(f"it is cut or damaged after member {len(names)}, where a header should be")
        tail: Any = members.fileobj
        if any(part.strip(b"\0") for part in iter(lambda: tail.read(2**20), b"")):
            raise tarfile.ReadError(f"it goes on after its end, which comes after member {len(names)}")
    return names


def _unpack(home: LocalHome, name: str, problem: str) -> InputError:
    return InputError(f"the archive '{printable(name)}' of '{home.name}' {problem}: unpack it into the folder")


def _why(home: Home, name: str, splits: Sequence[str], listed: bool) -> str | None:
    if home.is_dangling(name):
        return "a link that leads to nothing"
    if _ARCHIVE.search(name) and home.is_file(name):
        return "an archive, which is not read: unpack it"
    if home.is_closed(name):
        return "a folder that cannot be listed: change its permissions"
    if not home.is_file(name):
        return None
    if os.path.basename(name).lower() in _INDEX:
        return f"metadata is read from {', '.join(_INDEX)} in the folder of each split"
    ending = os.path.splitext(name)[1]
    if not _IMAGE.search(name):
        is_image = not _is_read(name) and _START.match(home.start(name))
        return "an image, and its name does not end like one that is read: rename it" if is_image else None
    if not _is_read(name):
        return f"{ending.lower()} files are not read from folders: convert it to PNG"
    if listed:
        return _UNLISTED
    if ending not in (ending.lower(), ending.upper()):
        return f"{ending} is read in lower-case or capital letters only: rename it"
    if re.search("(^|/)__", os.path.dirname(name)):
        return "folders that begin with __ are not read: rename it"
    return f"in none of the splits {', '.join(splits)}, after which other files or folders are named"
