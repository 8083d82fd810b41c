import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from ssdd_hub.evaluation.protocols.base import Measure
from ssdd_hub.evaluation.store import ScoreStore

KEY = {"set": {"images": "ab12"}, "seed": [0, 3], "protocol": "probe", "ridges": [1e-4, 1.0], "labels": None}
MEASURES = [Measure("accuracy", 0.1 + 0.2, 0.01), Measure("accuracy", 1 / 3, 50), Measure("mse", 1e-300)]
MEASURES += [Measure("mse", float("inf")), Measure("mse", float("-inf"))]


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path / "run" / "scores")


def only_file(store):
    (path,) = store.folder.iterdir()
    return path


def test_what_was_written_is_read_back_exactly(store):
    assert store.read(KEY) is None and not store.folder.exists()
    store.write(KEY, MEASURES[:1])
    store.write({**KEY, "seed": (0, 3)}, MEASURES)
    found = ScoreStore(store.folder).read(dict(reversed(KEY.items())))
    assert found == MEASURES
    assert [type(measure.labels) for measure in found] == [float, int, type(None), type(None), type(None)]
    # Written for people too.
    assert json.loads(only_file(store).read_text("utf-8"))["key"] == KEY and only_file(store).suffix == ".json"


@pytest.mark.parametrize(
    "change", [{"seed": [0, 4]}, {"ridges": [1e-4]}, {"labels": 0}, {"set": {"images": "ab13"}}, {"more": None}]
)
def test_every_part_of_the_key_counts(store, change):
    store.write(KEY, MEASURES)
    changed, part = {**KEY, **change}, next(iter(change))
    assert store.read(changed) is None and store.read({k: v for k, v in changed.items() if k != part}) == (
        MEASURES if part == "more" else None
    )
    store.write(changed, [])
    assert store.read(KEY) == MEASURES and store.read(changed) == []


def damages():
    whole = {"key": KEY, "measures": [{"metric": "mse", "value": 1.0, "labels": None}]}
    yield from (b"", b"\x00" * 40, b"\xff\xfe", b"null", b"[]", b"3", b'"text"', b"{}")
    yield from (json.dumps(part).encode() for part in ({"key": KEY}, {"measures": []}, {**whole, "key": {}}))
    for measures in (None, 3, [3], [None], ["mse"], [{"metric": "mse"}], [{**whole["measures"][0], "unit": 1}]):
        yield json.dumps({**whole, "measures": measures}).encode()
    yield json.dumps(whole).encode()[:-1]


@pytest.mark.parametrize("content", list(damages()))
def test_a_file_that_is_not_what_was_written_counts_as_none_and_is_replaced(store, content):
    store.write(KEY, MEASURES)
    only_file(store).write_bytes(content)
    assert store.read(KEY) is None
    store.write(KEY, MEASURES)
    assert store.read(KEY) == MEASURES


def test_a_torn_file_counts_as_none_wherever_it_ends(store):
    store.write(KEY, MEASURES)
    whole = only_file(store).read_bytes()
    for end in range(0, len(whole.rstrip()), 7):
        only_file(store).write_bytes(whole[:end])
        assert store.read(KEY) is None


def test_a_changed_digit_counts_as_none_and_a_file_without_a_hash_is_read(store):
    store.write(KEY, MEASURES)
    stored = json.loads(only_file(store).read_text())
    stored["measures"][0]["value"] += 0.125
    only_file(store).write_text(json.dumps(stored))
    assert store.read(KEY) is None
    del stored["sha256"]
    only_file(store).write_text(json.dumps(stored))
    assert store.read(KEY)[0].value == MEASURES[0].value + 0.125


def test_the_file_of_another_cell_is_not_taken_for_this_one(store):
    store.write(KEY, MEASURES)
    path = only_file(store)
    store.write({**KEY, "seed": [1, 3]}, [])
    (other,) = set(store.folder.iterdir()) - {path}
    other.replace(path)
    assert store.read(KEY) is None


def test_a_write_that_fails_leaves_the_cell_as_it_was(store, monkeypatch):
    store.write(KEY, MEASURES)
    seen = []

    def fail(temporary, path):
        seen.append(json.loads(temporary.read_text())["measures"])
        raise OSError("disk full")

    monkeypatch.setattr("ssdd_hub.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write(KEY, MEASURES[:1])
    # The whole file was there under another name, and is gone.
    assert [len(measures) for measures in seen] == [1]
    assert store.read(KEY) == MEASURES and only_file(store).suffix == ".json"


def test_two_threads_can_write_one_cell(store, monkeypatch):
    """Two sets of the same content share their cells, and their students are trained side by side."""
    both, rename = Barrier(2), os.replace

    def meet(temporary, path):
        both.wait(5)
        rename(temporary, path)

    monkeypatch.setattr("ssdd_hub.files.os.replace", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: store.write(KEY, MEASURES), range(2)))
    assert store.read(KEY) == MEASURES and only_file(store).suffix == ".json"
