"""Sets with views that are drawn from a seed: what they store comes back bit for bit, and is what students see."""

import json
import subprocess
import sys
from functools import cache

import datasets
import numpy as np
import pytest
import torch
from hub_server import client_env
from test_distilled import GREY, RGB, contents
from test_storage import follow_the_card, make_set as make_plain, written, zstd
from toy_parameterisation import Tiles, TilesSettings

from ssdd_hub.cli import main
from ssdd_hub.data.augment import crop_flip
from ssdd_hub.distill.pairs import Pairs
from ssdd_hub.distill.parameterisations.plain import PLAIN
from ssdd_hub.distill.parameterisations.views import Views, ViewsSettings, draw_fixed
from ssdd_hub.errors import InputError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.pixel_space import black_pixel
from ssdd_hub.record import read_metadata
from ssdd_hub.sets.check import check_folder
from ssdd_hub.sets.distilled import DistilledSet
from ssdd_hub.sets.pretrain import SetPairs, pretrain_student
from ssdd_hub.sets.storage import StorageSettings, pack

K, SEED = 2, 7
BASES = {
    "pixels": {},
    "factor": {"factor": 2},
    "dct": {"luma": 40, "chroma": 12, "step": 0.3, "target_step": 0.25},
}
FORMS = [(of, targets) for of in BASES for targets in ("float32", "float16", "int8")]
every_form = pytest.mark.parametrize(("of", "targets"), FORMS)


def make_learned(of="pixels", channels=3, shift="stored"):
    whole = make_plain(channels)
    black = black_pixel(whole.pixel_space, "cpu").flatten().tolist()
    settings = ViewsSettings(of=of, of_args=BASES.get(of, {}), views=K, seed=SEED, black=black, shift=shift)
    learned = Views.start(Pairs(whole.images, whole.targets), settings)
    with torch.no_grad():
        changed = learned.view_targets if shift == "stored" else learned.shift_output
        changed.add_(torch.randn(changed.shape, generator=torch.Generator().manual_seed(1)))
    return learned


def make_set(of="pixels", targets="float32", pixels="uint8", channels=3, **others):
    space = RGB if channels == 3 else GREY
    return DistilledSet.of(pack(make_learned(of, channels), space, StorageSettings(pixels, targets)), **others)


def same(one, other):
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("images", "targets", "views", "view_targets")
    )


@every_form
@pytest.mark.parametrize(("channels", "pixels"), [(1, "float32"), (3, "uint8")])
def test_a_set_with_drawn_views_comes_back_bit_for_bit(tmp_path, of, targets, channels, pixels):
    made = make_set(of, targets, pixels, channels)
    assert torch.equal(made.views, draw_fixed(6, K, SEED)) and made.view_targets.shape == (6, K, 5)
    folder = made.save(tmp_path / "set")
    loaded = DistilledSet.load(folder)
    assert same(loaded, made)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(folder)
    record = read_metadata(folder)
    assert "views" not in record["tensors"] and record["format_version"] == 2
    assert f"Each image has {K} fixed views: crop offsets and flip are drawn" in (folder / "README.md").read_text()


@every_form
def test_what_is_stored_is_what_was_learned_but_for_its_rounding(of, targets):
    learned, made = make_learned(of), make_set(of, targets, "float32")
    expected = learned.as_set()
    most = {"float32": 1e-5, "float16": 1e-2, "int8": max(map(abs, expected["view_targets"].flatten().tolist())) / 254}
    torch.testing.assert_close(made.images, expected["images"], rtol=0, atol=1e-5)
    for name in ("targets", "view_targets"):
        torch.testing.assert_close(getattr(made, name), expected[name], rtol=0, atol=most[targets] + 1e-5)
    # Students see what the method saw.
    pairs, seen = SetPairs(made), learned().detached()
    for number in range(len(learned)):
        image, target = pairs.view(torch.tensor([number % 6]), torch.tensor([number // 6]))
        torch.testing.assert_close(image[0], seen.images[number], rtol=0, atol=1e-4)
        torch.testing.assert_close(target[0], seen.targets[number], rtol=0, atol=most[targets] + 1e-4)


@pytest.mark.parametrize(("of", "targets", "pixels"), [(*form, "uint8") for form in FORMS] + [(*FORMS[0], "float32")])
def test_the_code_on_the_card_gives_the_views(tmp_path, monkeypatch, of, targets, pixels):
    made = make_set(of, targets, pixels)
    names = follow_the_card(made, tmp_path, monkeypatch)
    assert torch.equal(names["views"], made.views)
    torch.testing.assert_close(names["view_targets"], made.view_targets, rtol=0, atol=1e-5)
    black = black_pixel(RGB, "cpu")
    for view in range(K):
        seen = crop_flip(made.images - black, made.views[:, view]) + black
        torch.testing.assert_close(names["crops"][:, view], seen, rtol=0, atol=1e-4)


@every_form
def test_predicted_targets_take_the_bytes_of_their_network(tmp_path, monkeypatch, of, targets):
    learned = make_learned(of, shift="predicted")
    expected = learned.as_set()
    made = DistilledSet.of(pack(learned, RGB, StorageSettings("float32", targets)))
    assert (expected["view_targets"] - expected["targets"][:, None]).abs().max() > 1
    most = 1e-4 if targets == "float32" else 0.5
    torch.testing.assert_close(made.view_targets, expected["view_targets"], rtol=0, atol=most)
    names = follow_the_card(made, tmp_path, monkeypatch)
    for name in ("views", "view_targets"):
        torch.testing.assert_close(names[name], getattr(made, name), rtol=0, atol=1e-4)
    folder = tmp_path / "set"
    loaded = DistilledSet.load(folder)
    assert same(loaded, made)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(folder)
    # 8 units see 5 values, 3 of a view and 1; and 5 values are made of 8 and 1.
    network = (8 * 9 + 5 * 9) * (4 if targets == "float32" else 2)
    levels = 8 * sum(len(each.scale) for each in made.packed.decoder.levels.values())
    assert made.num_bytes()["decoder"] == network + levels
    assert "view_targets" not in read_metadata(folder)["tensors"]
    shared = read_metadata(folder)["storage"]["shared"]
    wide = {**shared, "shift_hidden": {**shared["shift_hidden"], "shape": [9, 9]}}
    for wrong, message in (
        ({}, "storage.shared of views must state shift_hidden and shift_output; got none"),
        (wide, "shift_hidden must be (8, 9), got (9, 9)"),
    ):
        record = json.loads((folder / "ssdd_hub.json").read_text())
        refuse(folder, {"storage": {**record["storage"], "shared": wrong}}, message)


BOOST = {"of": "bases", "of_args": {"bases": 4, "target_bases": 2, "factor": 2}, "kind": "rotations", "views": 3}


@cache
def learn_boost(shift):
    whole = make_plain(3)
    learned = Views.start(Pairs(whole.images, whole.targets), ViewsSettings(**BOOST, shift=shift, lr_shift=0.05))
    with torch.no_grad():
        learned.view_targets.add_(torch.randn(learned.view_targets.shape, generator=torch.Generator().manual_seed(1)))
    return learned


# The networks of what is fitted are fitted once.
@cache
def make_boost(shift="fitted", storage=("uint8", "int8")):
    learned = learn_boost(shift)
    return learned, DistilledSet.of(pack(learned, RGB, StorageSettings(*storage)))


@pytest.mark.parametrize("storage", [("float32", "float32"), ("float32", "float16"), ("uint8", "int8")])
@pytest.mark.parametrize("shift", ["stored", "fitted"])
def test_rotations_with_bases_of_targets_come_back_bit_for_bit_by_every_way(tmp_path, monkeypatch, shift, storage):
    learned, made = make_boost(shift, storage)
    expected, most = learned.stored().as_set(), {"float32": 1e-4, "float16": 0.05, "int8": 0.6}[storage[1]]
    for name in ("targets", "view_targets"):
        torch.testing.assert_close(getattr(made, name), expected[name], rtol=0, atol=most)
    assert (made.view_targets - made.targets[:, None]).abs().max() > 1
    loaded = DistilledSet.load(made.save(tmp_path / "first" / "set"))
    assert same(loaded, made) and torch.equal(
        made.views, torch.tensor([[4, 4, 2], [4, 4, 4], [4, 4, 6]]).repeat(6, 1, 1)
    )
    assert not [finding for finding in check_folder(tmp_path / "first" / "set") if finding.level == "error"]
    loaded.save(tmp_path / "again" / "set")
    assert contents(tmp_path / "again" / "set") == contents(tmp_path / "first" / "set")
    names = follow_the_card(made, tmp_path, monkeypatch)
    torch.testing.assert_close(names["view_targets"], made.view_targets, rtol=0, atol=1e-4)
    pairs, turned = SetPairs(made), made.images
    for view in range(3):
        turned = torch.stack(
            [torch.stack([image[:, j, 7 - i] for i in range(8) for j in range(8)], 1) for image in turned]
        )
        turned = turned.view(6, 3, 8, 8)
        torch.testing.assert_close(names["crops"][:, view], turned, rtol=0, atol=1e-4)
        seen, targets = pairs.view(torch.arange(6), torch.full((6,), view + 1))
        torch.testing.assert_close(seen, turned, rtol=0, atol=1e-5)
        assert torch.equal(targets, made.view_targets[:, view])
    assert "3 fixed views: quarter turns anticlockwise, the target" in (tmp_path / "set" / "README.md").read_text()
    table = datasets.load_dataset(str(tmp_path / "set"), split="train", streaming=True)
    assert [row["target"] for row in table] == written(made.packed.tensors["targets"])
    # Of bases, their targets and three networks of 8 units on 3 coefficients.
    width = {"float32": 4, "float16": 2, "int8": 2}[storage[1]]
    floats = sum(part.numel() * part.element_size() for part in made.packed.decoder.shared.values())
    assert (made.packed.tensors["targets"].shape, made.targets.shape) == ((6, 3), (6, 5))
    networks = 0 if shift == "stored" else 3 * (8 * 4 + 3 * 9) * width
    assert (
        floats
        == networks + {"float32": 4, "uint8": 1}[storage[0]] * 5 * 48 + width // (1 + (storage[1] == "int8")) * 15
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": {"kind": "crops"}}, "shift_hidden must be (8, 7), got (24, 4)"),
        ({"args": {"kind": "turns"}}, "kind must be one of crops, rotations"),
        ({"args": {"views": 2}}, "shift_hidden must be (16, 4), got (24, 4)"),
        ({"args": {"views": 4}}, "views must be at most 3 rotations"),
        ({"args": {"of_args": {"factor": 2}}}, "must state bases and shift_hidden and shift_output; got bases"),
        ({"args": {"of_args": {"factor": 10**9, "target_bases": 2}}}, "factor must be at most 64"),
        ({"bases": [5, 3, 4, 2]}, "are of square images, and these have 8 x 4 pixels"),
        ({"target_bases": [4, 5]}, "there must be one coefficient for each of the 4 bases; got 3"),
    ],
)
def test_a_record_of_rotations_that_is_wrong_is_refused(tmp_path, changes, message):
    folder = make_boost()[1].save(tmp_path / "set")
    storage = json.loads((folder / "ssdd_hub.json").read_text())["storage"]
    for name in changes.keys() - {"args"}:
        storage["shared"][name]["shape"] = changes[name]
    refuse(folder, {"storage": storage, "args": changes.get("args", {})}, message)


@pytest.mark.parametrize("targets", ["float32", "float16", "int8"])
def test_rows_of_datasets_hold_what_is_stored(tmp_path, targets):
    made = make_set("factor", targets)
    folder = made.save(tmp_path / "set")
    stored = made.packed.tensors
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["id", "image", "target", "view_target"]
    for rows in (table, datasets.load_dataset(str(folder), split="train", streaming=True)):
        assert [row["view_target"] for row in rows] == written(stored["view_targets"])


@pytest.mark.slow
def test_a_set_with_drawn_views_goes_to_the_hub_and_comes_back(hub, tmp_path):
    made = make_set("dct", "int8")
    made.push_to_hub("ann/views", token="hf_ann")
    assert same(DistilledSet.from_pretrained("ann/views"), made)
    code = (
        "from datasets import load_dataset\nimport json\n"
        "rows = load_dataset('ann/views', split='train', streaming=True)\n"
        "print(json.dumps([row['view_target'] for row in rows]))"
    )
    env = client_env(hub, tmp_path / "reader")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert json.loads(done.stdout) == written(made.packed.tensors["view_targets"]), done.stderr


@every_form
def test_views_take_no_bytes_and_their_targets_those_that_are_stored(tmp_path, capsys, of, targets):
    made = make_set(of, targets)
    sizes, stored = made.num_bytes(), made.packed.tensors
    width = {"float32": 4, "float16": 2}
    whole = [
        len(zstd(stored[name])) if stored[name].dtype == torch.int8 else stored[name].numel() * width[targets]
        for name in ("targets", "view_targets")
    ]
    assert sizes["targets"] == sum(whole)
    assert sizes["decoder"] == 8 * sum(len(each.scale) for each in made.packed.decoder.levels.values())
    main(["show", str(made.save(tmp_path / "set"))])
    shown = capsys.readouterr().out
    assert f"targets {sizes['targets']} B" in shown and f"(6, {K}, 5)".strip("()") in shown


def test_a_student_is_trained_on_the_views_with_their_targets(monkeypatch):
    made = make_set("factor", "float32", provenance={"use": {"epochs": 3, "batch_size": 4, "augmentation": "views"}})
    seen = []
    view = SetPairs.view

    def watched(self, indices, views):
        found = view(self, indices, views)
        seen.extend(zip(indices.tolist(), views.tolist(), *found, strict=True))
        return found

    monkeypatch.setattr(SetPairs, "view", watched)
    torch.manual_seed(0)
    student = ConvNet((4, 4), "batch", 3, 8, 5)
    before = {name: part.clone() for name, part in student.state_dict().items()}
    pretrain_student(student, made, progress=False)
    assert {view for _, view, _, _ in seen} == {0, 1, 2}
    expected, black = torch.cat([made.targets[:, None], made.view_targets], 1), black_pixel(RGB, "cpu")
    for index, view, image, target in seen:
        assert torch.equal(target, expected[index, view])
        crop = made.views[index, view - 1][None]
        shown = crop_flip(made.images[index][None] - black, crop)[0] + black if view else made.images[index]
        torch.testing.assert_close(image, shown)
    assert not torch.equal(before["head.weight"], student.state_dict()["head.weight"])


def test_views_of_what_no_decoder_knows_are_stored_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setitem(PLAIN.known, "tiles", Tiles)
    learned = make_learned("tiles")
    made = DistilledSet.of(pack(learned, RGB, StorageSettings("uint8", "int8")))
    loaded = DistilledSet.load(made.save(tmp_path / "set"))
    assert same(loaded, made) and torch.equal(made.views, draw_fixed(6, K, SEED))
    assert "views" in read_metadata(tmp_path / "set")["tensors"]
    assert isinstance(learned.of.settings, TilesSettings)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"of": "os.system"}, "of must be one of pixels, factor, dct, bases"),
        ({"of": "views"}, "of must be one of pixels, factor, dct, bases"),
        ({"of": ["pixels"]}, "of must be one of pixels, factor, dct, bases"),
        ({"of": None}, "of must be one of pixels, factor, dct, bases"),
        ({"of_args": None}, "does not fit the stored images and view_targets"),
        ({"of_args": {"factor": 10**9}}, "factor must be"),
        ({"of_args": {"factor": 2, "x": 1}}, "unexpected keyword argument 'x'"),
        ({"views": 3}, "view_targets must be (1, 3, 5), got (1, 2, 5)"),
        ({"views": 10**9}, "views must be at most 161"),
        ({"views": True}, "views must be a whole number"),
        ({"shift": "guessed"}, "shift must be one of"),
        ({"shift": "predicted"}, "storage.shared of views must state shift_hidden and shift_output; got none"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**40}, "seed must be at most 4294967295"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
    ],
)
def test_a_record_of_views_that_is_wrong_is_refused(tmp_path, args, message):
    refuse(make_set("factor").save(tmp_path / "set"), {"args": args}, message)


def test_a_record_must_state_the_targets_of_views_alone(tmp_path):
    folder = make_set("factor").save(tmp_path / "set")
    tensors = read_metadata(folder)["tensors"]
    both = {**tensors, "views": {**tensors["view_targets"], "shape": [6, K, 3], "dtype": "int64"}}
    refuse(folder, {"tensors": both}, "views of a set of views are not stored, but made")
    refuse(folder, {"tensors": {name: tensors[name] for name in ("images", "targets")}}, "'view_targets'")
    wide = {**tensors, "view_targets": {**tensors["view_targets"], "shape": [6, K, 6]}}
    refuse(folder, {"tensors": wide}, "view_targets must be (1, 2, 5), got (1, 2, 6)")


def refuse(folder, changes, message):
    record = json.loads((folder / "ssdd_hub.json").read_text())
    changed = json.loads(json.dumps(record))
    changed |= {name: value for name, value in changes.items() if name != "args"}
    changed["storage"]["parameterisation"]["args"] |= changes.get("args", {})
    (folder / "ssdd_hub.json").write_text(json.dumps(changed))
    with pytest.raises(InputError) as refused:
        DistilledSet.load(folder)
    assert message in str(refused.value)
    assert any(message in str(finding) for finding in check_folder(folder) if finding.level == "error")
    (folder / "ssdd_hub.json").write_text(json.dumps(record))


def test_a_small_folder_whose_views_take_gigabytes_is_refused(tmp_path, monkeypatch):
    folder = make_set("factor", "int8").save(tmp_path / "set")
    # Of images and targets, but not of the targets of views, which are larger decoded.
    monkeypatch.setenv("SSDD_HUB_MAX_SET_GIB", str(6 * (4 * (3 * 64 + 5) + K * 8 * 3) / 2**30 * 64 / 6))
    with pytest.raises(InputError, match="SSDD_HUB_MAX_SET_GIB"):
        DistilledSet.load(folder)


def test_changed_targets_of_views_are_not_saved_as_what_they_were(tmp_path):
    made = make_set()
    made.view_targets[0] += 1
    with pytest.raises(InputError, match="the view_targets of a compact set are not those that it stores"):
        made.save(tmp_path / "set")
    rounded = made.compact()
    assert np.array_equal(rounded.views, made.views)
    assert same(DistilledSet.load(rounded.save(tmp_path / "set")), rounded)
