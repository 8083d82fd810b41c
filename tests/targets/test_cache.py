import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ssdd_hub.data.augment import crop_flip
from ssdd_hub.data.decode import CorruptImageError
from ssdd_hub.errors import InputError
from ssdd_hub.files import atomic_path
from ssdd_hub.targets.bank import FeatureBank, Index, Shard, shard_path, write_shard
from ssdd_hub.targets.cache import FeatureCache, fixed_views


class Listed:
    """Images one by one, of which some cannot be decoded; counts those that are asked for."""

    def __init__(self, pixels, corrupt=()):
        self.pixels, self.corrupt, self.decoded = pixels, corrupt, []
        self.provenance = {"name": "listed", "license": "cc0-1.0"}
        self.fingerprint, self.num_rows = f"listed {len(pixels)} {corrupt}", None

    def rows(self):
        for row in range(len(self.pixels)):
            yield lambda row=row: self.read(row)

    def read(self, row):
        self.decoded.append(row)
        if row in self.corrupt:
            raise CorruptImageError(f"row {row}: cut short")
        return self.pixels[row]


@pytest.fixture
def bank(digits):
    return digits[0].subset(range(23))


@pytest.fixture
def cache(small_teacher, accelerator, tmp_path):
    def cache(teacher=None, **options):
        options = {"batch_size": 3, "shard_size": 8, **options}
        return FeatureCache(teacher or small_teacher(), accelerator, tmp_path / "features", **options)

    return cache


def expected(teacher, pixels):
    return teacher(pixels.to(next(teacher.parameters()).dtype) / 255)


def index_of(folder):
    return json.loads((folder / "index.json").read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [1, 7, 8, 16, 17, 23])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_features_are_the_teachers_of_pixels_between_0_and_1(cache, bank, small_teacher, count, batch_size):
    features = cache(batch_size=batch_size).features(bank.subset(range(count)))
    assert (len(features), features.width, features.dtype) == (count, 24, torch.float32)
    assert features.index.num_shards == -(-count // 8)
    torch.testing.assert_close(features[:], expected(small_teacher(), bank.pixels[:count]), rtol=1e-5, atol=1e-6)


def test_features_have_the_precision_of_the_teacher(cache, bank, small_teacher):
    teacher = small_teacher(dtype=torch.float64)
    features = cache(teacher).features(bank)
    assert features.dtype == torch.float64 and features.index.rounding_error == 0
    torch.testing.assert_close(features[:], expected(teacher, bank.pixels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_is_the_rounded_features_with_their_error_stated(cache, bank, dtype, error):
    exact, rounded = cache().features(bank), cache(dtype=dtype).features(bank)
    assert rounded.dtype == getattr(torch, dtype) and torch.equal(rounded[:], exact[:].to(rounded.dtype))
    assert error / 8 < rounded.index.rounding_error < error


def test_features_of_views_are_the_teachers_of_the_same_crops(cache, bank, small_teacher):
    for view in range(2):
        features = cache().features(bank, view, seed=5)
        pixels = crop_flip(bank.pixels, fixed_views(range(23), view, seed=5))
        torch.testing.assert_close(features[:], expected(small_teacher(), pixels), rtol=1e-5, atol=1e-6)
    assert (features[:] - cache().features(bank)[:]).abs().max() > 1e-3


def test_a_stream_gives_the_features_of_a_bank(cache, bank):
    stream = Listed(bank.pixels)
    for view in (None, 1):
        assert torch.equal(cache().features(stream, view)[:], cache().features(bank, view)[:])


def test_fixed_views_are_a_function_of_seed_number_and_row(monkeypatch):
    assert torch.equal(fixed_views(range(9), 1, seed=5), fixed_views(range(9), 1, seed=5))
    assert not torch.equal(fixed_views(range(9), 1, seed=5), fixed_views(range(9), 2, seed=5))
    assert not torch.equal(fixed_views(range(9), 1, seed=5), fixed_views(range(9), 1, seed=6))
    monkeypatch.setattr("ssdd_hub.targets.cache._VIEW_BLOCK", 4)
    whole = fixed_views(range(21), 1, seed=5)
    assert whole.shape == (21, 3) and len(whole.unique(dim=0)) > 15
    for rows in (range(0, 5), range(4, 8), range(7, 13), range(20, 21)):
        assert torch.equal(fixed_views(rows, 1, seed=5), whole[rows.start : rows.stop])


@pytest.mark.parametrize("view", [None, 1])
def test_skipped_images_are_recorded_and_the_others_keep_their_features_and_views(cache, bank, small_teacher, view):
    corrupt = (0, 9, 10, 22)
    features = cache().features(Listed(bank.pixels, corrupt), view)
    kept = [row for row in range(23) if row not in corrupt]
    pixels = bank.pixels if view is None else crop_flip(bank.pixels, fixed_views(range(23), view, seed=0))
    torch.testing.assert_close(features[:], expected(small_teacher(), pixels[kept]), rtol=1e-5, atol=1e-6)
    assert features.index.skipped == {row: f"row {row}: cut short" for row in corrupt}
    assert (features.index.num_images, features.index.num_rows) == (19, 23)


def test_a_shard_of_skipped_images_only_is_empty(cache, bank):
    features = cache().features(Listed(bank.pixels, tuple(range(8, 16))))
    assert len(features) == 15 and features.index.num_shards == 3


def test_without_any_image_there_are_no_features(cache, bank):
    with pytest.raises(InputError, match="there are no images to compute features of"):
        cache().features(Listed(bank.pixels[:0]))
    with pytest.raises(InputError, match="none of the 2 images can be decoded; the first is row 0: cut short"):
        cache().features(Listed(bank.pixels[:2], (0, 1)))


def test_features_are_computed_once_and_then_read(cache, bank):
    stream = Listed(bank.pixels)
    first = cache().features(stream)
    assert stream.decoded == list(range(23))
    again = cache().features(stream)
    assert stream.decoded == list(range(23)) and torch.equal(again[:], first[:])


def test_whatever_features_depend_on_gives_another_folder(cache, bank, digits, small_teacher, tmp_path):
    smaller, darker = small_teacher(), small_teacher()
    smaller.input_size = 8
    darker.pixel_space = type(darker.pixel_space)((0.5,), (0.3,))
    requests = [
        lambda: cache().features(bank),
        lambda: cache().features(digits[0].subset(range(22))),
        lambda: cache(small_teacher(seed=1)).features(bank),
        lambda: cache(small_teacher(dtype=torch.float64)).features(bank),
        lambda: cache(smaller).features(bank),
        lambda: cache(darker).features(bank),
        lambda: cache(dtype="float16").features(bank),
        lambda: cache(dtype="bfloat16").features(bank),
        lambda: cache(shard_size=16).features(bank),
        lambda: cache().features(bank, 0),
        lambda: cache().features(bank, 0, seed=1),
        lambda: cache().features(bank, 1),
    ]
    made = []
    for number, request in enumerate(requests, start=1):
        made.append(request())
        assert len(os.listdir(tmp_path / "features")) == number
    for request, features in zip(requests, made, strict=True):
        again = request()
        assert again.folder == features.folder and torch.equal(again[:], features[:])
    assert len(os.listdir(tmp_path / "features")) == len(requests)


def test_neither_the_batch_size_nor_the_teachers_name_changes_the_folder(cache, bank, small_teacher):
    renamed = small_teacher()
    renamed.name, renamed.license = "another", "unknown"
    folder = cache().features(bank).folder
    assert cache(renamed, batch_size=4).features(bank).folder == folder and folder.name.startswith("features-")


def test_a_type_that_is_the_teachers_own_shares_its_folder(cache, bank, small_teacher):
    teacher = small_teacher(dtype=torch.bfloat16)
    assert cache(teacher).features(bank).folder == cache(teacher, dtype="bfloat16").features(bank).folder


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(path, process):
    """Makes the temporary file of a process that is killed while it writes a file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        left = temporary.with_name(temporary.name.replace(str(os.getpid()), str(process)))
        shutil.copy(temporary, left)
    path.unlink()
    return left


class Meddling(Listed):
    """A stream during which another run does something, at each row or at one."""

    def __init__(self, pixels, meddle, at=None):
        super().__init__(pixels)
        self.meddle, self.at = meddle, at

    def read(self, row):
        if self.at in (None, row):
            self.meddle()
        return super().read(row)


class Killed(BaseException):
    pass


def die():
    raise Killed


def test_an_interrupted_pass_goes_on_and_gives_the_same_bytes(cache, bank, tmp_path):
    whole = contents(cache().features(Listed(bank.pixels)).folder)
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(Killed):
        cache().features(Meddling(bank.pixels, die, at=17))
    (folder,) = (tmp_path / "features").iterdir()
    assert sorted(os.listdir(folder)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    leave(shard_path(folder, 2), dead_process())
    resumed = Listed(bank.pixels)
    cache().features(resumed)
    assert resumed.decoded == list(range(16, 23))
    assert contents(folder) == whole


@pytest.mark.parametrize("damage", ["cut short", "missing", "index", "no index", "width", "type"])
def test_damaged_shards_are_computed_again_and_no_others(cache, bank, damage):
    folder = cache().features(Listed(bank.pixels)).folder
    whole, path = contents(folder), shard_path(folder, 1)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "index":
        (folder / "index.json").write_text(json.dumps({**index_of(folder), "num_images": 24}))
    elif damage == "no index":
        (folder / "index.json").unlink()
    else:
        wrong = torch.zeros(8, 23) if damage == "width" else torch.zeros(8, 24, dtype=torch.float64)
        write_shard(path, wrong, wrong.dtype)
    mended = Listed(bank.pixels)
    features = cache().features(mended)
    damaged = [] if "index" in damage else list(range(8, 16))
    # Whether a short shard is the last one only the end of the stream tells.
    assert mended.decoded == [*damaged, *range(16, 23)]
    assert contents(folder) == whole and len(features) == 23


@pytest.mark.parametrize("damage", [0, 1, *range(-767, 0, 150)])
def test_a_flipped_bit_in_a_shard_is_named_and_the_shard_computed_again(cache, bank, caplog, damage):
    folder = cache().features(Listed(bank.pixels)).folder
    whole, path = contents(folder), shard_path(folder, 1)
    damaged = bytearray(whole[path.name])
    begin = 8 + int.from_bytes(damaged[:8], "little")
    damaged[damage if damage < 0 else begin + damage] ^= 16
    path.write_bytes(damaged)
    mended = Listed(bank.pixels)
    cache().features(mended)
    # Whether a short shard is the last one only the end of the stream tells.
    assert mended.decoded == list(range(8, 23)) and contents(folder) == whole
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is damaged, its sha256 is not the one that was written: it is computed again"
    ]


def test_a_changed_header_of_a_shard_is_noticed(cache, bank):
    folder = cache().features(Listed(bank.pixels, (9,))).folder
    whole, path = contents(folder), shard_path(folder, 1)
    path.write_bytes(whole[path.name].replace(b"row 9: cut", b"row 8: cut"))
    cache().features(Listed(bank.pixels, (9,)))
    assert contents(folder) == whole


def test_a_shard_without_a_hash_is_taken(cache, bank):
    folder = cache().features(Listed(bank.pixels)).folder
    path = shard_path(folder, 0)
    with safe_open(path, framework="pt") as file:
        stated = json.loads(file.metadata()["shard"])
        matrix = file.get_tensor("features")
    del stated["sha256"]
    save_file({"features": matrix}, path, metadata={"shard": json.dumps(stated)})
    again = Listed(bank.pixels)
    cache().features(again)
    assert again.decoded == []


def test_an_index_of_other_features_is_not_believed(cache, bank, digits):
    folder = cache().features(bank).folder
    other = cache().features(digits[0].subset(range(23, 46))).folder
    shutil.copy(folder / "index.json", other / "index.json")
    cache().features(digits[0].subset(range(23, 46)))
    assert index_of(other)["key"] != index_of(folder)["key"]


def test_shards_of_more_rows_than_there_are_images_are_refused(cache, bank, monkeypatch):
    folder = cache(shard_size=8).features(Listed(bank.pixels[:16])).folder
    (folder / "index.json").unlink()
    changed = Listed(bank.pixels[:12])
    changed.fingerprint = Listed(bank.pixels[:16]).fingerprint
    with pytest.raises(InputError, match="holds features of 16 rows, and there are 12: pass --targets.refresh"):
        cache().features(changed)
    assert len(cache(refresh=True).features(changed)) == 12


def test_a_refresh_computes_everything_again(cache, bank):
    stream = Listed(bank.pixels)
    folder = cache().features(stream).folder
    whole = contents(folder)
    for number, size in enumerate([8, 8, 7]):
        write_shard(shard_path(folder, number), torch.zeros(size, 24), torch.float32)
    shards = [Shard.read(shard_path(folder, number)) for number in range(3)]
    Index.of(index_of(folder)["key"], shards, 8).write(folder)
    assert torch.equal(cache().features(stream)[:], torch.zeros(23, 24))
    cache(refresh=True).features(stream)
    assert contents(folder) == whole and len(stream.decoded) == 46


def test_a_refresh_lets_those_that_are_reading_read_on(cache, bank):
    reader = cache().features(bank)
    whole, seen = reader[:], []
    watched = Meddling(bank.pixels, lambda: seen.append(torch.equal(reader[:], whole)))
    watched.fingerprint = bank.fingerprint
    assert cache(refresh=True).features(watched).folder == reader.folder
    assert seen == [True] * 23 and torch.equal(reader[:], whole)


def test_an_interrupted_refresh_has_no_index(cache, bank):
    folder = cache().features(Listed(bank.pixels)).folder
    with pytest.raises(Killed):
        cache(refresh=True).features(Meddling(bank.pixels, die, at=17))
    assert not (folder / "index.json").exists()
    assert len(cache().features(Listed(bank.pixels))) == 23


def test_only_temporary_files_of_dead_processes_and_old_ones_are_removed(cache, bank):
    folder = cache().features(bank).folder
    processes = [os.getppid(), os.getppid(), dead_process(), dead_process()]
    left = [leave(folder / f"shard-0000{number}.safetensors", process) for number, process in enumerate(processes, 3)]
    os.utime(left[1], (time.time() - 90000,) * 2)
    foreign = folder / ".shard-00001.safetensors.x.tmp"
    foreign.write_bytes(b"half")
    cache(refresh=True).features(bank)
    assert set(folder.glob(".*.tmp")) == {left[0], foreign}


def test_shards_that_vanish_before_the_index_are_reported(cache, bank, tmp_path):
    def meddle():
        next((tmp_path / "features").rglob("shard-00001*")).unlink()

    with pytest.raises(InputError, match="another run has changed .*shard-00001.* is missing .*start again"):
        cache().features(Meddling(bank.pixels, meddle, at=22))


def test_a_temporary_file_that_vanishes_is_reported(cache, bank, monkeypatch):
    replace = os.replace

    def meddle(old, new):
        old.unlink()
        replace(old, new)

    monkeypatch.setattr("ssdd_hub.files.os.replace", meddle)
    with pytest.raises(InputError, match="another run has changed .*shard-00000.*start again, or use a folder"):
        cache().features(Listed(bank.pixels))


def test_the_index_says_whose_features_of_what_they_are(cache, bank, small_teacher, tmp_path):
    teacher, stored = small_teacher(), tmp_path / "stored"
    (tmp_path / "photos").mkdir()
    stored.mkdir()
    teacher.name, teacher.license = f"local-dir:{stored}", "cc-by-4.0"
    teacher.provenance = {"objective": {"name": "vicreg"}, "seed": 7, "elsewhere": 1}
    images = Listed(bank.pixels)
    images.provenance = {"name": str(tmp_path / "photos"), "license": "cc0-1.0", "split": "train"}
    folder = cache(teacher).features(images).folder
    about = index_of(folder)["about"]
    assert about["source"] == {"name": "photos", "license": "cc0-1.0", "split": "train"}
    expected = {**teacher.identity(), "name": "local-dir:stored", "objective": {"name": "vicreg"}, "seed": 7}
    assert about["teacher"] == json.loads(json.dumps(expected)) and about["teacher"]["license"] == "cc-by-4.0"
    assert str(tmp_path) not in (folder / "index.json").read_text()
    assert FeatureBank(folder).index.about == about
    assert cache().features(bank).index.about["source"]["license"] == "cc-by-4.0"
