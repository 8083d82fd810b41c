import re
from html.parser import HTMLParser

import pytest
import torch
import yaml

from ssdd_hub import DistilledSet, PixelSpace
from ssdd_hub.sets import gallery
from ssdd_hub.sets.gallery import render_gallery, target_map, write_space

HOSTILE = "</title><script>alert(1)</script>\"'{{ 7 * 7 }}"


def a_set(images=5, channels=3, **more):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, channels, 8, 8, generator=generator)
    return DistilledSet(pixels, torch.randn(images, 6, generator=generator), PixelSpace.raw(channels), **more)


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def page_of(distilled, path, **how):
    return render_gallery(distilled, path / "gallery.html", "a title", **how).read_text(encoding="utf-8")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_every_image_is_in_the_grid_and_on_the_map(tmp_path, images, channels):
    tags = Tags(page_of(a_set(images, channels), tmp_path)).found
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert ids == [*(f"i{n}" for n in range(images)), *(f"m{n}" for n in range(images))]
    links = {attributes["href"] for tag, attributes in tags if tag == "a"}
    assert links == {f"#{each}" for each in ids}


def test_nothing_runs_and_nothing_is_fetched(tmp_path):
    provenance = {"method": HOSTILE, "source": {"name": HOSTILE}, "license": HOSTILE, "scores": [{"set": HOSTILE}]}
    distilled = a_set(
        provenance=provenance, labels=torch.arange(5), label_names=[f"{number}{HOSTILE}" for number in range(5)]
    )
    page = render_gallery(distilled, tmp_path / "page.html", HOSTILE).read_text(encoding="utf-8")
    tags = Tags(page).found
    assert {"script", "img", "link", "iframe"}.isdisjoint(tag for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "{{ 7 * 7 }}" in page and not re.search(r"https?://", re.sub(r"base64,[^)]*", "", page))
    assert "The recorded scores cannot be read" in page


def test_starts_are_shown_only_where_they_are_given(tmp_path):
    starts = torch.rand(5, 3, 8, 8)
    assert "started from" not in page_of(a_set(), tmp_path)
    page = page_of(a_set(), tmp_path, starts=starts)
    assert "started from" in page and page.count('class="tile start"') == 5


def test_a_large_set_is_shown_in_part_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MOST_PIXELS", 3 * 64)
    page = page_of(a_set(), tmp_path)
    assert "3 shown" in page and page.count("<figure") == 3


def test_neighbours_are_those_of_all_pairs_compared_at_once(monkeypatch):
    monkeypatch.setattr(gallery, "_ROWS", 4)
    targets = torch.randn(11, 3, generator=torch.Generator().manual_seed(2))
    distances = (targets[:10, None] - targets[None, :10]).norm(dim=2)
    order = [[other for other in row if other != index] for index, row in enumerate(distances.argsort(1).tolist())]
    assert gallery._nearest(targets, 10) == [row[:3] for row in order]
    assert gallery._nearest(targets, 2) == [[1], [0]] and gallery._nearest(targets, 1) == [[]]


def test_the_map_holds_the_principal_components():
    generator = torch.Generator().manual_seed(1)
    plane = torch.randn(50, 2, generator=generator) * torch.tensor([5.0, 1.0])
    targets = plane @ torch.linalg.qr(torch.randn(7, 7, generator=generator))[0][:2] + 3
    places = target_map(targets)
    assert places.amin(0).tolist() == [0, 0] and places.amax(0).tolist() == pytest.approx([1, 1])
    correlation = torch.corrcoef(torch.cat([places.T, plane.T - plane.T.mean(1, keepdim=True)]))
    assert correlation[0, 2].abs() > 0.98 and correlation[1, 3].abs() > 0.98
    assert torch.equal(target_map(targets), target_map(targets.clone()))


def test_equal_targets_and_narrow_ones_have_a_map():
    assert target_map(torch.ones(3, 4)).isfinite().all()
    assert target_map(torch.rand(3, 1)).shape == (3, 2)


def test_a_space_is_a_static_page_with_its_declaration(tmp_path):
    folder = write_space(a_set(), tmp_path / "space", f"a: 'b' # {HOSTILE}\nsdk: docker")
    assert {path.name for path in folder.iterdir()} == {"index.html", "README.md"}
    declared = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert declared["sdk"] == "static" and declared["app_file"] == "index.html" and declared["title"].startswith("a: ")


def test_the_page_tells_what_the_images_started_from_and_still_show(tmp_path):
    alike = {"nearest": {"median": 0.9, "max": 0.95, "above_0.8": 4, "of": 5}}
    page = page_of(a_set(provenance={"start": {"init": "kmeans"}, "similarity": alike}), tmp_path)
    assert "<dd>real images, kmeans</dd>" in page and "<dd>4 of 5</dd>" in page
    assert "<dd>noise</dd>" in page_of(a_set(provenance={"start": {"init": "noise"}}), tmp_path)
    assert "started from" not in page_of(a_set(), tmp_path)


def test_the_scores_of_an_evaluation_take_the_place_of_the_recorded_ones(tmp_path):
    score = {"set": "mine", "protocol": "probe", "metric": "accuracy", "std": 0.0, "n": 1}
    distilled = a_set(provenance={"scores": [{**score, "mean": 0.25}]})
    assert "25.0" in page_of(distilled, tmp_path)
    page = page_of(distilled, tmp_path, records=[{**score, "mean": 0.75}])
    assert "75.0" in page and "25.0" not in page


@pytest.mark.parametrize(("shape", "tall", "rendering"), [((8, 16), "0.5", "pixelated"), ((144, 96), "1.5", "auto")])
def test_tiles_have_the_shape_of_the_images_and_large_ones_are_smoothed(tmp_path, shape, tall, rendering):
    distilled = DistilledSet(torch.rand(3, 1, *shape), torch.rand(3, 2), PixelSpace.raw(1))
    page = page_of(distilled, tmp_path)
    assert f"--tall: {tall};" in page and f"image-rendering: {rendering};" in page
