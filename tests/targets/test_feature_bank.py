import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssdd_hub.errors import InputError
from ssdd_hub.targets.bank import FeatureBank, Index, Shard, shard_path, write_shard

SIZES, WIDTH = (8, 8, 5), 3


def write_bank(folder, parts, dtype=torch.float32, skipped=None, size=8):
    """Writes shards of `size` rows, of which `skipped` have no features."""
    paths = [shard_path(folder, number) for number in range(len(parts))]
    for number, part in enumerate(parts):
        missing = {row: why for row, why in (skipped or {}).items() if row // size == number}
        write_shard(paths[number], part, dtype, missing)
    Index.of({"images": "abc"}, [Shard.read(path) for path in paths], size).write(folder)
    return FeatureBank(folder)


def make_bank(folder, dtype=torch.float32, skipped=None, sizes=SIZES):
    features = torch.randn(sum(sizes), WIDTH, generator=torch.Generator().manual_seed(0))
    write_bank(folder, features.split(list(sizes)), dtype, skipped)
    return features


@pytest.fixture
def stored(tmp_path):
    """21 features in three shards, and the bank of them."""
    return make_bank(tmp_path), FeatureBank(tmp_path)


def test_rows_are_gathered_in_the_order_asked_for(stored):
    features, bank = stored
    assert (len(bank), bank.width, bank.dtype) == (21, 3, torch.float32)
    for rows in (torch.tensor([20, 0, 7, 8, 15, 16, 7, 0]), [3, 17]):
        assert torch.equal(bank[rows], features[rows])


@pytest.mark.parametrize(
    "rows", [slice(None), slice(5, 18), slice(8, 16), slice(0, 0), slice(19, 99), slice(0, 21, 4)]
)
def test_slices_are_those_of_a_tensor(stored, rows):
    features, bank = stored
    assert torch.equal(bank[rows], features[rows])
    assert torch.equal(bank[torch.arange(21)[rows]], features[rows])


@pytest.mark.parametrize("rows", [[21], [-1], [0, 99]])
def test_rows_outside_are_refused(stored, rows):
    with pytest.raises(IndexError, match="of 21 features are asked for"):
        stored[1][rows]


def test_what_is_read_is_a_copy(stored):
    features, bank = stored
    bank[:].zero_()
    assert torch.equal(bank[:], features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_held_in_memory_are_those_on_the_disk(tmp_path, dtype):
    features, requests = make_bank(tmp_path, dtype), (slice(None), slice(3, 19, 5), torch.tensor([20, 0, 7, 8, 7]))
    on_disk, held = FeatureBank(tmp_path), FeatureBank(tmp_path)
    expected = [on_disk[rows] for rows in requests]
    held.hold()
    assert held.num_bytes == 21 * 3 * dtype.itemsize
    # From memory, then, not from the disk.
    shutil.rmtree(tmp_path)
    for rows, found in zip(requests, expected, strict=True):
        assert torch.equal(held[rows], found)
    with pytest.raises(IndexError, match="of 21 features are asked for"):
        held[[-1]]
    held[:].zero_()
    assert torch.equal(held[:], features.to(dtype))


def test_rows_that_follow_one_another_are_read_at_once(stored, monkeypatch):
    (features, bank), opened, plain_open = stored, [], Path.open

    def counted_open(path, mode):
        file = plain_open(path, mode, buffering=0)
        opened.append(Mock(wraps=file, __enter__=lambda mock: mock, __exit__=lambda *error: file.close()))
        return opened[-1]

    monkeypatch.setattr(Path, "open", counted_open)
    assert torch.equal(bank[[4, 3, 20, 2, 7, 6]], features[[4, 3, 20, 2, 7, 6]])
    assert [file.seek.call_count for file in opened] == [2, 1]


def test_a_shard_that_is_replaced_by_one_with_another_header_is_read_right(stored, tmp_path):
    features, bank = stored
    write_shard(shard_path(tmp_path, 1), features[8:16], torch.float32, {99: "a reason that makes the header longer"})
    assert torch.equal(bank[:], features)


@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_a_shard_that_is_lost_after_the_bank_was_opened_is_reported(stored, tmp_path, damage):
    bank, path = stored[1], shard_path(tmp_path, 1)
    path.unlink() if damage == "remove" else path.write_bytes(path.read_bytes()[:-4])
    assert len(bank[:8]) == 8
    with pytest.raises(InputError, match="shard-00001.safetensors is missing or damaged .*compute the features again"):
        bank[[15]]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_rounding_is_measured(tmp_path, dtype, digits):
    features, bank = make_bank(tmp_path, dtype), FeatureBank(tmp_path)
    assert bank.dtype == dtype and torch.equal(bank[:], features.to(dtype))
    exact = features.double()
    error = ((features.to(dtype).double() - exact).norm() / exact.norm()).item()
    assert bank.index.rounding_error == pytest.approx(error, rel=1e-12)
    assert 2 ** -(digits + 3) < error < 2**-digits
    assert str(bank).startswith(f"21 x 3 {str(dtype)[6:]}, relative rounding error")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_rounded_unasked(tmp_path, dtype):
    features = torch.rand(9, 2, dtype=dtype)
    bank = write_bank(tmp_path, [features], dtype, size=9)
    assert torch.equal(bank[:], features) and bank.index.rounding_error == 0
    facts = {"num_images": 9, "width": 2, "dtype": str(dtype)[6:], "rounding_error": 0.0, "num_skipped": 0}
    assert bank.describe() == facts


def test_features_of_nothing_but_zeros_have_no_error(tmp_path):
    assert write_bank(tmp_path, [torch.zeros(4, 2)], torch.float16).index.rounding_error == 0


def test_features_beyond_half_precision_are_refused(tmp_path):
    features = torch.tensor([[1.0, -7e4]])
    with pytest.raises(InputError, match=r"reach 7e\+04, and float16 holds at most 6.55e\+04: .*dtype bfloat16"):
        write_shard(tmp_path / "a", features, torch.float16)
    assert list(tmp_path.iterdir()) == []
    write_shard(tmp_path / "a", features, torch.bfloat16)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(InputError, match="the teacher gives NaN or infinite features"):
        write_shard(tmp_path / "a", torch.tensor([[1.0, value]]), torch.float32)


def test_the_same_features_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, torch.arange(6.0).reshape(2, 3), torch.float32, {2: "no image", 11: "cut short"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_skipped_rows_are_recorded_and_left_out(tmp_path):
    features = make_bank(tmp_path, skipped={6: "row 6: cut short", 7: "row 7: empty", 16: "x"}, sizes=(6, 8, 2))
    bank = FeatureBank(tmp_path)
    assert (len(bank), bank.index.num_rows) == (16, 19)
    assert torch.equal(bank[torch.tensor([5, 6, 15])], features[[5, 6, 15]])
    stated = json.loads((tmp_path / "index.json").read_text())
    assert stated["skipped"] == {"6": "row 6: cut short", "7": "row 7: empty", "16": "x"}
    assert Shard.read(shard_path(tmp_path, 0)).skipped == {6: "row 6: cut short", 7: "row 7: empty"}
    assert bank.describe()["num_skipped"] == 3


def test_a_shard_without_a_single_image_is_passed_over(tmp_path):
    features = make_bank(tmp_path, skipped={row: "bad" for row in range(8, 16)}, sizes=(8, 0, 5))
    assert torch.equal(FeatureBank(tmp_path)[torch.tensor([7, 8, 12])], features[[7, 8, 12]])


def change(number, function):
    """Replaces the bytes of a shard."""

    def damage(folder):
        path = shard_path(folder, number)
        path.write_bytes(function(path.read_bytes()))

    return damage


def replace(*shape, dtype=torch.float32):
    return lambda folder: write_shard(shard_path(folder, 1), torch.zeros(shape), dtype)


def forget(folder):
    save_file(load_file(shard_path(folder, 1)), shard_path(folder, 1))


def add_tensor(folder):
    path = shard_path(folder, 1)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"another": torch.zeros(2), **load_file(path)}, path, metadata=metadata)


def swap(folder):
    first, last = shard_path(folder, 0), shard_path(folder, 2)
    first.rename(folder / "aside")
    last.rename(first)
    (folder / "aside").rename(last)


def cut_index(folder):
    (folder / "index.json").write_text((folder / "index.json").read_text()[:-9])


def state(**facts):
    def lie(folder):
        stated = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**stated, **facts}))

    return lie


DAMAGED, UNLIKE = "shard-00001.safetensors is missing or damaged", "index.json does not describe the shards"
DAMAGE = {
    "cut short": (change(1, lambda content: content[:-4]), DAMAGED),
    "too long": (change(1, lambda content: content + b"0000"), DAMAGED),
    "no safetensors": (change(1, lambda content: b"\xff" * 200), DAMAGED),
    "no metadata": (forget, rf"{DAMAGED} \('shard'\)"),
    "another tensor": (add_tensor, rf"{DAMAGED} \(it holds .*another"),
    "missing": (
        lambda folder: shard_path(folder, 2).unlink(),
        "shard-00002.safetensors is missing or damaged .*No such",
    ),
    "other width": (replace(8, 2), UNLIKE),
    "other type": (replace(8, 3, dtype=torch.float16), UNLIKE),
    "other count": (replace(7, 3), UNLIKE),
    "other order": (swap, UNLIKE),
    "index cut short": (cut_index, "does not hold a teacher's features, whole: "),
    "no index": (
        lambda folder: (folder / "index.json").unlink(),
        "does not hold a teacher's features, whole: .*No such",
    ),
    "index of another count": (state(num_images=20), UNLIKE),
    "index of fewer shards": (state(num_shards=2), UNLIKE),
    "index of more shards": (state(num_shards=4), "shard-00003.safetensors is missing"),
    "index of no shards": (state(num_shards=0), "does not hold a teacher's features, whole"),
    "index of another type": (state(dtype="float64"), UNLIKE),
    "index of another error": (state(rounding_error=0.5), UNLIKE),
    "index of another shard size": (state(shard_size=7), UNLIKE),
    "index of a later format": (state(format_version=2), UNLIKE),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folders_are_refused(tmp_path, case):
    damage, message = DAMAGE[case]
    make_bank(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        FeatureBank(tmp_path)
    assert str(caught.value).endswith("; compute them again")
