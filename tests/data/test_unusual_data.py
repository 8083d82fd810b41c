"""Unusual data of users: nothing is left out without a word; splits and columns are checked, not believed."""

import gc
import io
import zipfile

import data_folders
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssdd_hub.data.bank import DataSettings, load_images
from ssdd_hub.errors import InputError

# `datasets` leaves the files of metadata open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file")


@pytest.fixture(autouse=True)
def closed():
    """Closes these files here, and not in the middle of another test."""
    yield
    gc.collect()


RANDOM = np.random.default_rng(0)


def picture(size=(16, 16)):
    return Image.fromarray(RANDOM.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write(path, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(size).save(path)


def class_folders(root, names=("cat", "dog"), each=6):
    for name in names:
        for number in range(each):
            write(root / name / f"{number}.png")
    return root


def load(path, **settings):
    return load_images(DataSettings(name=str(path), image_size=16, **settings), 0, False)


def total(path, **settings):
    source, heldout = load(path, **settings)
    return len(source) + len(heldout)


def save(path, **columns):
    features = columns.pop("features", None)
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path))
    return path


@pytest.fixture
def pictures():
    return [picture() for _ in range(12)]


# Discovery of files


def test_a_class_folder_that_is_a_link_is_refused_or_followed(tmp_path):
    class_folders(tmp_path / "elsewhere", ["dog"])
    root = class_folders(tmp_path / "images", ["cat"])
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    with pytest.raises(InputError, match="dog.* link.*--data.follow-links"):
        load(root)
    source, heldout = load(root, follow_links=True)
    assert len(source) + len(heldout) == 12
    assert source.label_names == ["cat", "dog"] and sorted(source.labels.unique().tolist()) == [0, 1]


def test_links_that_lead_in_a_circle_end(tmp_path):
    root = class_folders(tmp_path / "images")
    (root / "cat" / "again").symlink_to(root)
    with pytest.raises(InputError, match="again.* link"):
        load(root)
    assert total(root, follow_links=True) == 12


@pytest.mark.parametrize("names", [["all.zip"], ["cat.zip", "dog.zip"], ["images.tar.gz"]])
def test_archives_are_to_be_unpacked(tmp_path, names):
    folder = class_folders(tmp_path / "images")
    archives = tmp_path / "archives"
    archives.mkdir()
    for name in names:
        with zipfile.ZipFile(archives / name, "w") as file:
            for path in sorted(folder.rglob("*.png")):
                file.write(path, path.relative_to(folder))
    with pytest.raises(InputError, match=f"{names[0]}.*unpack"):
        load(archives)


@pytest.mark.parametrize("how", ["avif", "dangling", "unlisted", "text"])
def test_what_is_not_loaded_is_refused_or_counted_by_name(tmp_path, how):
    root = class_folders(tmp_path / "images")
    if how == "avif":
        picture().save(root / "cat" / "other.avif")
    elif how == "dangling":
        (root / "cat" / "other.png").symlink_to(tmp_path / "nowhere.png")
    elif how == "unlisted":
        names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.png"))]
        (root / "metadata.csv").write_text("file_name,note\n" + "".join(f"{name},a\n" for name in names))
        write(root / "cat" / "other.png")
    else:
        (root / "cat" / "notes.txt").write_text("no image, and nobody takes it for one")
        assert total(root) == 12
        return
    with pytest.raises(InputError, match=r"cat/other\..*--data.on-corrupt skip"):
        load(root)
    source, heldout = load(root, on_corrupt="skip")
    assert len(source) + len(heldout) == 12
    assert source.provenance["num_skipped"] == 1 and "cat/other." in str(source.provenance["skipped"])


# Values used as sizes


@pytest.mark.parametrize("first", [10**12, -7, 0, 5])
def test_integers_of_any_size_are_classes_from_zero_on(tmp_path, pictures, first):
    path = save(tmp_path / "data", image=pictures, label=[first + 10 * (index % 3) for index in range(12)])
    source, heldout = load(path, label_column="label")
    assert sorted({*source.labels.tolist(), *heldout.labels.tolist()} - {-1}) == [0, 1, 2]
    assert source.label_names == [str(first + 10 * index) for index in range(3)]


def test_minus_one_is_a_class_of_integers_and_unknown_only_where_the_dataset_says_so(tmp_path, pictures):
    path = save(tmp_path / "data", image=pictures, label=[-1, 1, None] * 4)
    source, heldout = load(path, label_column="label", heldout_fraction=0.5)
    assert sorted({*source.labels.tolist(), *heldout.labels.tolist()}) == [-1, 0, 1]
    assert source.label_names == ["-1", "1"]


@pytest.mark.parametrize("wrong", [2, 10**12, -2])
def test_a_class_label_beyond_its_names_is_refused(tmp_path, pictures, wrong):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    found = datasets.Dataset.from_dict({"image": pictures, "label": [wrong] + [0] * 11}, features)
    features["label"] = datasets.ClassLabel(names=["cat", "dog"])
    datasets.Dataset(found.data.table.replace_schema_metadata(features.arrow_schema.metadata)).save_to_disk(
        str(tmp_path / "data")
    )
    with pytest.raises(InputError, match=f"'label' of the split 'train' must hold numbers from -1 to 1.*{wrong}"):
        load(tmp_path / "data")


# Sizes on the way


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_long_image_is_cropped_where_that_fits_and_refused_by_name_otherwise(tmp_path, size):
    root = class_folders(tmp_path / "images")
    write(root / "cat" / "long.png", size)
    assert total(root) == 13
    with pytest.raises(InputError, match=r"cat/long.png.*pixels, and more than \d+ when its shorter side is .* 224"):
        load_images(DataSettings(name=str(root), image_size=224), 0, False)
    banks = load_images(DataSettings(name=str(root), image_size=224, on_corrupt="skip"), 0, False)
    assert sum(map(len, banks)) == 12 and "cat/long.png" in str([bank.provenance["skipped"] for bank in banks])


def test_files_that_are_no_images_by_their_size_are_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ssdd_hub.data.row_files.LARGEST_FILE", 2**21)
    root = class_folders(tmp_path / "images")
    with open(root / "cat" / "huge.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"cat/huge.png.*at most 2097152 bytes"):
        load(root)
    (root / "cat" / "huge.png").unlink()
    flat = tmp_path / "flat"
    flat.mkdir()
    with zipfile.ZipFile(flat / "images.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.png", png(picture()))
        file.writestr("1.png", bytes(2**23))
    with pytest.raises(InputError, match=r"1.png.*at most 2097152 bytes"):
        load(flat)


# Splits


def split_sets(path, train, test):
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(path))
    return path


def table(pictures, labels, names=None):
    found = datasets.Dataset.from_dict({"image": pictures, "label": labels})
    return found.cast_column("label", datasets.ClassLabel(names=names)) if names else found


def test_classes_in_another_order_are_matched_by_name(tmp_path, pictures):
    train = table(pictures, [0, 1] * 6, ["cat", "dog"])
    source, heldout = load(split_sets(tmp_path / "data", train, table(pictures, [0, 1] * 6, ["dog", "cat"])))
    assert source.label_names == heldout.label_names == ["cat", "dog"]
    assert heldout.labels.tolist() == [1, 0] * 6


def test_a_class_that_only_one_split_knows_is_refused_by_name(tmp_path, pictures):
    train = table(pictures, [0, 1] * 6, ["cat", "dog"])
    path = split_sets(tmp_path / "data", train, table(pictures, [0, 1] * 6, ["cat", "owl"]))
    with pytest.raises(InputError, match="owl"):
        load(path)


@pytest.mark.parametrize("labels", [[1, 2] * 6, [0, 10**12] * 6])
def test_numbers_that_only_one_split_knows_are_refused(tmp_path, pictures, labels):
    path = split_sets(tmp_path / "data", table(pictures, [0, 1] * 6), table(pictures, labels))
    with pytest.raises(InputError, match=f"classes that 'train' does not have .'{labels[1]}'; it has '0', '1'"):
        load(path, label_column="label")


def test_a_test_split_may_lack_classes(tmp_path, pictures):
    train = table(pictures, [3, 8, 5] * 4)
    source, heldout = load(split_sets(tmp_path / "data", train, table(pictures, [8] * 12)), label_column="label")
    assert source.label_names == heldout.label_names == ["3", "5", "8"] and heldout.labels.tolist() == [2] * 12


def test_images_to_train_on_may_have_no_labels_and_the_column_must_be_somewhere(tmp_path, pictures):
    test = table(pictures, [0, 1] * 6)
    path = split_sets(tmp_path / "data", test.remove_columns("label"), test)
    source, heldout = load(path, label_column="label")
    assert source.labels is None and heldout.labels.tolist() == [0, 1] * 6
    with pytest.raises(InputError, match="no column 'lable'"):
        load(path, label_column="lable")


def test_the_image_column_of_each_split_is_its_own(tmp_path, pictures):
    train = table(pictures, [0, 1] * 6)
    source, heldout = load(split_sets(tmp_path / "data", train, train.rename_column("image", "picture")))
    assert torch.equal(source.pixels, heldout.pixels) and heldout.provenance["image_column"] == "picture"
    texts = train.remove_columns("image").add_column("image", ["text"] * 12)
    with pytest.raises(InputError, match="no image column; its columns are .*image .Value.'string'"):
        load(split_sets(tmp_path / "texts", train, texts))


def test_a_split_without_labels_has_unknown_ones(tmp_path, pictures):
    train = table(pictures, [0, 1] * 6, ["cat", "dog"])
    source, heldout = load(split_sets(tmp_path / "data", train, train.remove_columns("label")))
    assert source.labels.tolist() == [0, 1] * 6 and heldout.labels is None


@pytest.mark.parametrize("labels", [["cat", "dog"] * 6, ["dog", "cat"] * 6])
def test_names_in_one_split_and_numbers_in_the_other_are_matched(tmp_path, pictures, labels):
    train = table(pictures, [0, 1] * 6, ["cat", "dog"])
    source, heldout = load(split_sets(tmp_path / "data", train, table(pictures, labels)))
    assert heldout.labels.tolist() == [["cat", "dog"].index(label) for label in labels]


# State inside a dataset


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
@pytest.mark.parametrize("columns", [None, ["label"]])
def test_the_format_of_a_saved_dataset_does_not_matter(tmp_path, pictures, kind, columns):
    found = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 6})
    found.with_format(kind, columns=columns).save_to_disk(str(tmp_path / "data"))
    plain = save(tmp_path / "plain", image=pictures, label=[0, 1] * 6)
    for given, expected in zip(load(tmp_path / "data"), load(plain), strict=True):
        assert torch.equal(given.pixels, expected.pixels)
    assert torch.equal(*(data_folders.read(data_folders.stream_of(path)) for path in (tmp_path / "data", plain)))
    split_sets(tmp_path / "splits", found.with_format(kind, columns=columns), found)
    assert torch.equal(*(bank.pixels for bank in load(tmp_path / "splits")))


# Columns


def test_binary_columns_of_image_files_are_images(tmp_path, pictures):
    binary = save(tmp_path / "binary", picture=[png(image) for image in pictures], label=[0, 1] * 6)
    plain = save(tmp_path / "plain", picture=pictures, label=[0, 1] * 6)
    for given, expected in zip(load(binary), load(plain), strict=True):
        assert torch.equal(given.pixels, expected.pixels)


def test_bytes_in_parquet_are_images_also_read_as_a_stream_and_give_way_to_an_image_column(tmp_path):
    files = {f"{value}.png": data_folders.picture(value) for value in range(4)}
    folder = data_folders.save_as(tmp_path / "set", "binary", files)
    assert data_folders.load(folder) == data_folders.stream(folder) == [0, 1, 2, 3]
    found = datasets.load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    found = found.add_column("picture", found["image"][:]).cast_column("image", datasets.Image())
    found.save_to_disk(str(tmp_path / "both"))
    assert data_folders.load(tmp_path / "both") == [0, 1, 2, 3]
    assert data_folders.load(tmp_path / "both", image_column="picture") == [0, 1, 2, 3]


@pytest.mark.parametrize("labels, names", [(["b", "a"] * 6, ["a", "b"]), ([True, False] * 6, ["False", "True"])])
def test_text_and_switches_are_classes(tmp_path, pictures, labels, names):
    source, heldout = load(save(tmp_path / "data", image=pictures, label=labels), label_column="label")
    assert source.label_names == names
    assert sorted({*source.labels.tolist(), *heldout.labels.tolist()}) == [0, 1]


@pytest.mark.parametrize(
    "column, kind, remedy",
    [
        ([np.zeros((16, 16, 3), np.uint8)] * 12, "Array3D", "Image"),
        ([[[1, 2], [3, 4]]] * 12, "List", "Image"),
        (["/images/1.png"] * 12, "string", "Image"),
    ],
)
def test_columns_that_are_no_images_are_told_with_type_and_cast(tmp_path, column, kind, remedy):
    features = None
    if kind == "Array3D":
        features = datasets.Features({"picture": datasets.Array3D((16, 16, 3), "uint8")})
    path = save(tmp_path / "data", picture=column, features=features)
    with pytest.raises(InputError, match=rf"picture.*{kind}(.|\n)*{remedy}"):
        load(path)


@pytest.mark.parametrize("fields", [("bytes",), ("path", "bytes"), ("bytes", "path", "width")])
def test_structures_with_the_bytes_of_files_are_images(tmp_path, pictures, fields):
    kinds = {"bytes": pa.binary(), "path": pa.string(), "width": pa.int64()}
    rows = [{"bytes": png(image), "path": None, "width": 16} for image in pictures]
    (tmp_path / "data").mkdir()
    column = pa.array(rows, pa.struct({name: kinds[name] for name in fields}))
    pq.write_table(pa.table({"image": column}), tmp_path / "data" / "train.parquet")
    plain = save(tmp_path / "plain", image=pictures)
    for given, expected in zip(load(tmp_path / "data"), load(plain), strict=True):
        assert torch.equal(given.pixels, expected.pixels)


def test_a_message_about_columns_shows_ten_of_them(tmp_path):
    path = save(tmp_path / "data", **{f"pixel{index}": [0] * 4 for index in range(784)})
    with pytest.raises(InputError, match=r"pixel9 \(Value\('int64'\)\), and 774 more; images are") as caught:
        load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("labels", "names", "known"),
    [([1.0, 0.0] * 6, ["0", "1"], [0, 1]), ([7.0, None, 3.0] * 4, ["3", "7"], [-1, 0, 1]), ([None] * 12, None, None)],
)
@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_whole_fractions_are_classes_and_nothing_is_unknown(tmp_path, pictures, labels, names, known, kind):
    column = pa.array(labels, pa.null() if names is None else pa.float64()).cast(pa.null() if names is None else kind)
    found = datasets.Dataset.from_dict({"image": pictures}).add_column("label", [0] * 12)
    found = datasets.Dataset(found.data.table.set_column(1, "label", column).replace_schema_metadata())
    found.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "data"))
    source, heldout = load(tmp_path / "data", label_column="label", heldout_fraction=0.5)
    assert source.label_names == names
    if names:
        assert sorted({*source.labels.tolist(), *heldout.labels.tolist()}) == known


def test_classes_become_fractions_where_one_is_missing_and_still_match(tmp_path, pictures):
    path = split_sets(tmp_path / "data", table(pictures, [4, 2] * 6), table(pictures, [2.0, None, 4.0] * 4))
    source, heldout = load(path, label_column="label")
    assert source.label_names == heldout.label_names == ["2", "4"] and heldout.labels.tolist() == [0, -1, 1] * 4


@pytest.mark.parametrize("labels", [[[0, 1]] * 12, [{"id": 1}] * 12])
def test_several_classes_of_an_image_are_refused_without_a_cast_that_would_fail(tmp_path, pictures, labels):
    path = save(tmp_path / "data", image=pictures, label=labels)
    with pytest.raises(InputError, match="one class label, .* for each image: another column, or --data.label-col"):
        load(path, label_column="label")


@pytest.mark.parametrize("value", [0.5, float("inf"), 1e300])
def test_labels_that_are_measurements_are_refused_with_their_type(tmp_path, pictures, value):
    path = save(tmp_path / "data", image=pictures, label=[value + index for index in range(12)])
    with pytest.raises(InputError, match="label.*float"):
        load(path, label_column="label")
