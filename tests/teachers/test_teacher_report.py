import pytest
from PIL import Image

from ssdd_hub.teachers.monitor import knn_records, render_training

LOG = [
    {"stage": "teacher", "step": 0, "rank": 2.0, "knn": 0.1},
    {"stage": "teacher", "step": 3, "loss": 5.0},
    {"stage": "teacher", "step": 6, "loss": 4.0, "rank": 9.0, "knn": 0.4},
    {"stage": "distiller", "step": 1, "loss": 1.0, "knn": 0.9},
]
ABOUT = {"source": "digits", "target": "digits", "student": "ssdd_resnet10"}


def test_the_first_and_the_last_score_become_records():
    assert [(record["set"], record["mean"], record["values"]) for record in knn_records(LOG, ABOUT)] == [
        ("untrained", 0.1, [0.1]),
        ("teacher", 0.4, [0.4]),
    ]
    record = knn_records(LOG, ABOUT)[0]
    assert record.items() >= {**ABOUT, "protocol": "knn", "metric": "accuracy", "n": 1, "std": None}.items()


def test_without_labels_there_are_no_records():
    assert knn_records([{"stage": "teacher", "step": 1, "loss": 2.0, "rank": 3.0}], ABOUT) == []


@pytest.mark.parametrize(("log", "panels"), [(LOG, 3), (LOG[1:2], 1)])
def test_the_picture_has_a_panel_for_each_curve(tmp_path, log, panels):
    render_training(tmp_path / "pictures" / "training.png", log)
    with Image.open(tmp_path / "pictures" / "training.png") as picture:
        assert picture.size[0] == pytest.approx(4.2 * 120 * panels, abs=2)
        assert picture.convert("L").getextrema()[0] < 128
