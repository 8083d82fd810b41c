import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdd_hub.sets import similarity
from ssdd_hub.sets.origin import describe_origin
from ssdd_hub.sets.similarity import correlations, measure_similarity, nearest


@pytest.fixture
def source():
    return torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_correlations_are_those_of_numpy(source):
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = [np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1] for a, b in zip(images, source, strict=False)]
    assert correlations(images, source[:5]).numpy() == pytest.approx(expected, abs=1e-5)
    table = np.corrcoef(images.flatten(1).numpy(), source.flatten(1).numpy())[:5, 5:]
    values, places = nearest(images, source)
    assert values.numpy() == pytest.approx(table.max(1), abs=1e-5)
    assert places.tolist() == table.argmax(1).tolist()


def test_chunks_change_nothing(source, monkeypatch):
    images = torch.rand(5, 3, 8, 8)
    whole = nearest(images, source)
    monkeypatch.setattr(similarity, "_CHUNK", 3 * 192)
    values, places = nearest(images, source)
    assert torch.equal(places, whole[1]) and torch.allclose(values, whole[0])


def test_a_copy_is_found_whatever_its_brightness_and_contrast(source):
    copies = (source[[7, 3]].float() / 255 - 0.4) * 3
    facts = measure_similarity(copies, source, source[[7, 5]])
    assert nearest(copies, source)[1].tolist() == [7, 3]
    assert facts["nearest"] == {"median": 1.0, "max": 1.0, "above_0.8": 2, "of": 2}
    assert facts["start"]["above_0.8"] == 1 and facts["start"]["max"] == 1.0
    assert "start" not in measure_similarity(copies, source)


def test_flat_images_resemble_nothing(source):
    assert correlations(torch.ones(1, 3, 8, 8), source[:1]).item() == 0


def test_of_a_source_too_large_some_images_are_searched_and_how_many_is_said(source, monkeypatch):
    assert measure_similarity(source[:2].float(), source)["searched"] == 40
    monkeypatch.setattr(similarity, "_MOST_VALUES", 20 * 192)
    facts = measure_similarity(source[[1, 3]].float(), source, source[[1, 5]])
    assert facts["searched"] == 20
    # Odd ones are left out, but a start is known.
    assert facts["nearest"]["above_0.8"] == facts["start"]["above_0.8"] == 1


def test_the_origin_of_a_set_is_that_of_its_images(source):
    bank = SimpleNamespace(pixels=source)
    rows = torch.tensor([7, 3])
    facts = describe_origin("kmeans", rows, source[rows] / 255, bank, source[rows] / 255)
    assert facts["start"] == {"init": "kmeans", "indices": [7, 3]}
    assert facts["similarity"]["start"]["above_0.8"] == facts["similarity"]["nearest"]["above_0.8"] == 2
    assert json.loads(json.dumps(facts)) == facts
    noise = describe_origin("noise", None, torch.rand(2, 3, 8, 8), bank, torch.rand(2, 3, 8, 8))
    assert noise["start"] == {"init": "noise"} and "start" not in noise["similarity"]
