"""Teachers and students on the Hub: what timm loads there is what was here, and the cards say what it is."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from hub_server import HubServer, client_env, connected
from safetensors.torch import load_file, save_file
from test_cli import STUDENT, full_set
from test_distilled import contents

from ssdd_hub.errors import InputError
from ssdd_hub.hub.upload import Published, plan_upload, upload
from ssdd_hub.models.build import build_student
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.machine import describe_versions
from ssdd_hub.sets.pretrain import pretrain_student
from ssdd_hub.sets.publish import CardOverrides, push_set
from ssdd_hub.sets.release import Student, check_teacher, pack_model, save_student
from ssdd_hub.teachers.teacher import Teacher, build_teacher

FILES = {"README.md", "config.json", "model.safetensors", "ssdd_hub.json"}
STUDENT_OF = ("ssdd_convnet3", {"widths": [4, 6, 8]})
SET, TEACHER, PUPIL = "ann/digits", "ann/digits-teacher", "ann/digits-ssdd_convnet3"
MADE = {
    "objective": {"name": "barlow_twins", "citation": "Zbontar et al., ICML 2021"},
    "source": {"name": "digits", "license": "cc-by-4.0", "num_images": 200},
    "seed": 5,
    "settings": {"pretrain": {"epochs": 3}},
}
# The code of the cards comes first, since it has to import by itself all that it needs.
SCRIPT = """
import sys
from pathlib import Path

pixels, outputs, *codes = sys.argv[1:]
for code in codes:
    exec(compile(Path(code).read_text(), code, "exec"), {})

import ssdd_hub
import timm
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
given, got = load_file(pixels)["pixels"], {}
for name in ("ann/digits-teacher", "ann/digits-ssdd_convnet3"):
    with torch.no_grad():
        got[name] = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()(given)
save_file(got, outputs)
"""


@pytest.fixture(scope="module")
def one_thread():
    """On as many threads as the script has: sums in another order differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def new_teacher(seed=0):
    """Makes a teacher whose batch statistics are not those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = timm.create_model("ssdd_convnet3", num_classes=0, widths=(4, 6, 8), in_chans=1, img_size=(16, 16))
        backbone.train()(torch.randn(8, 1, 16, 16))
    return Teacher(backbone, PixelSpace((0.4,), (0.3,)), 16, f"small-{seed}", "mit")


@pytest.fixture
def folder(tmp_path):
    new_teacher().save(tmp_path / "teacher", MADE)
    return tmp_path / "teacher"


def test_a_teacher_that_is_read_otherwise_than_the_set_records_is_not_published_beside_it(folder, tmp_path):
    teacher, versions = build_teacher(f"local-dir:{folder}"), describe_versions()
    own = full_set(teacher=teacher.identity(), versions=versions).save(tmp_path / "set")
    check_teacher(own, folder)
    for path in (folder / "config.json", folder / "ssdd_hub.json"):
        path.write_text(path.read_text().replace("bicubic", "bilinear"))
    words = "interpolation is recorded as 'bicubic', it is 'bilinear'"
    with pytest.raises(InputError, match=f"was distilled with another teacher than .*small-0.*{words}.*leave --teac"):
        check_teacher(own, folder)


def test_a_teacher_is_read_before_publication_as_the_set_records_that_it_was_read(folder, tmp_path, caplog):
    read = {"features": "mean", "mean": [0.1], "std": [0.9]}
    teacher = build_teacher(f"local-dir:{folder}", **read)
    settings = {"teacher": {"backbone": "local-dir:gone", "pretrained": True, "model_args": {}, **read}}
    facts = {"teacher": teacher.identity(), "versions": describe_versions()}
    check_teacher(full_set(**facts, settings=settings).save(tmp_path / "set"), folder)
    with pytest.raises(InputError, match="pixel_space is recorded as"):
        check_teacher(full_set(**facts).save(tmp_path / "plain"), folder)
    wrong = {"teacher": {"pretrained": True, "mean": "dark", "std": [1.0]}}
    with pytest.raises(InputError, match="read as the set records it|mean"):
        check_teacher(full_set(**facts, settings=wrong).save(tmp_path / "wrong"), folder)
    told = {**facts, "teacher": {**teacher.identity(), "structure_sha256": "0" * 64}, "versions": {"timm": "0.1"}}
    assert not caplog.records
    check_teacher(full_set(**told, settings=settings).save(tmp_path / "old"), folder)
    assert "the structure of the teacher could not be compared" in caplog.text


def publish(folder, repo_id, sets=(), message="Publish", **how):
    plan = plan_upload(pack_model(folder, repo_id, sets), repo_id, token="hf_ann", **how)
    return upload(plan, message, "hf_ann")


def header_of(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture(scope="module")
def published(tmp_path_factory, one_thread):
    """A set, its teacher and a student, published, and what a process of its own makes of the two models there."""
    root = tmp_path_factory.mktemp("published")
    with HubServer(root / "hub") as server, connected(server, root / "home"):
        server.add_user("ann", "hf_ann")
        teacher, distilled = new_teacher(), full_set()
        teacher.save(root / "teacher", MADE)
        sent = push_set(distilled.save(root / "set"), SET, token="hf_ann", additions=CardOverrides(teacher=TEACHER))
        publish(root / "teacher", TEACHER, [SET])
        source = {"name": SET, "revision": sent.revision}
        student = save_student("ssdd_convnet3", distilled, root / "student", source, **STUDENT["model_args"])
        publish(root / "student", PUPIL)
        cards = {name: server.files(name, repo_type="model")["README.md"].decode() for name in (TEACHER, PUPIL)}
        codes = [root / "teacher.py", root / "pupil.py"]
        for path, card in zip(codes, cards.values(), strict=True):
            path.write_text("\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)))
        pixels = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        save_file({"pixels": pixels}, root / "pixels.safetensors")
        command = [sys.executable, "-c", SCRIPT, root / "pixels.safetensors", root / "outputs.safetensors", *codes]
        ran = subprocess.run(command, env=client_env(server, root / "home"), capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        outputs, models = load_file(root / "outputs.safetensors"), {TEACHER: teacher.backbone, PUPIL: student}
        facts = {"cards": cards, "pixels": pixels, "outputs": outputs, "models": models}
        yield SimpleNamespace(hub=server, root=root, sent=sent, **facts)


@pytest.mark.parametrize("name", [TEACHER, PUPIL])
def test_timm_loads_from_the_hub_what_was_here_to_the_bit(published, name):
    with torch.no_grad():
        expected = published.models[name](published.pixels)
    assert torch.equal(published.outputs[name].view(torch.int32), expected.view(torch.int32))
    assert expected.shape == ((7, 8 * 4) if name == TEACHER else (7, 4)) and expected.std() > 0


@pytest.mark.parametrize(("name", "place"), [(TEACHER, "teacher"), (PUPIL, "student")])
def test_the_code_of_the_card_here_runs_where_it_lies(published, name, place, monkeypatch):
    monkeypatch.chdir(published.root / place)
    names = {}
    card = (published.root / place / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(block, names)
    pixels, space = published.pixels, names["teacher"].pixel_space
    with torch.no_grad():
        expected = pre_logits(published.models[name].eval(), space.normalise(pixels))
        assert torch.equal(names["model"](space.normalise(pixels)), expected) and names["features"].shape[0] == 1


@pytest.mark.parametrize(("name", "place"), [(TEACHER, "teacher"), (PUPIL, "student")])
def test_the_repository_holds_timms_layout_a_record_and_a_card_and_no_pickle(published, name, place):
    files = published.hub.files(name, repo_type="model")
    assert files.keys() == FILES | {".gitattributes"}
    for path in ("config.json", "model.safetensors"):
        assert files[path] == (published.root / place / path).read_bytes()
    assert published.hub.repos["model", name].find("main").files["model.safetensors"].lfs
    assert header_of(published.cards[name])["tags"][2:4] == ["ssdd_hub", "timm"]


def test_the_set_and_its_teacher_name_each_other(published):
    assert f"Distilled with its features: [{SET}](https://huggingface.co/datasets/{SET})." in published.cards[TEACHER]
    record = json.loads(published.hub.files(TEACHER, repo_type="model")["ssdd_hub.json"])
    assert record["provenance"] == {**MADE, "sets": [SET]}
    assert f"[{TEACHER}](https://huggingface.co/{TEACHER})" in published.hub.files(SET)["README.md"].decode()


def test_the_card_of_a_student_says_what_it_is_and_of_which_set(published):
    card = published.cards[PUPIL]
    header = header_of(card)
    assert (header["datasets"], header["license"], header["library_name"]) == ([SET], ["cc-by-4.0", "mit"], "ssdd_hub")
    assert header["tags"] == ["self-supervised", "dataset-distillation", "ssdd_hub", "timm"]
    for text in (
        "\n# ssdd\\_convnet3 pre-trained on digits\n",
        "A ssdd\\_convnet3 that was pre-trained on the 5 images of ann/digits, a distilled set, by regression on "
        "their targets. Without its head it maps an image to 32 features. It is a start for tasks with few labels:",
        f"Pre-trained on the distilled set: [{SET}](https://huggingface.co/datasets/{SET}).",
        f"| Source | name: ann/digits; revision: {published.sent.revision}; num images: 5; license: cc-by-4.0, mit |",
        "| Seed | 0 |",
        "  widths:\n  - 4\n  - 6\n  - 8\n",
        "  epochs: 2\n  batch_size: 4\n  learning_rate: 0.01\n  augment: crop-flip\n",
        "| This model | cc-by-4.0, mit |",
        f'timm.create_model("hf-hub:{PUPIL}", pretrained=True, num_classes=0)',
    ):
        assert text in card, text
    assert not re.search("frozen|Datasets are distilled with", card)


def test_a_published_model_is_a_teacher_again(published):
    with connected(published.hub, published.root / "again"):
        again = build_teacher(f"hf-hub:{TEACHER}")
    assert again.identity() == {**new_teacher().identity(), "name": f"hf-hub:{TEACHER}"}
    assert again.provenance == {**MADE, "sets": [SET]} and again.license == "mit"


def test_the_folder_stays_as_it_is_and_what_else_is_in_it_is_not_sent(hub, folder):
    (folder / "optimizer.pt").write_bytes(b"\x80\x04.")
    before = contents(folder)
    publish(folder, "ann/m", private=True)
    assert contents(folder) == before and hub.repos["model", "ann/m"].private
    assert hub.files("ann/m", repo_type="model").keys() == FILES | {".gitattributes"}
    owns = pack_model(folder, "ann/m").owns
    assert not owns("optimizer.pt") and all(map(owns, FILES))


def test_somebody_elses_model_is_not_replaced(hub, folder):
    theirs = {"config.json": b"{}", "model.safetensors": b"years of work"}
    hub.commit("ann/m", theirs, repo_type="model")
    with pytest.raises(InputError, match="ann/m holds something else .config.json, model.safetensors"):
        publish(folder, "ann/m")
    assert hub.files("ann/m", repo_type="model").items() >= theirs.items()


def test_a_folder_that_lacks_a_part_is_refused_and_one_without_a_card_gets_one(folder):
    for missing in sorted(FILES):
        content = (folder / missing).read_bytes()
        (folder / missing).unlink()
        if missing == "README.md":
            assert pack_model(folder, "ann/m").files.keys() == FILES
        else:
            with pytest.raises(InputError, match=f"no folder of a model .* it has no {missing}: give one that"):
                pack_model(folder, "ann/m")
        (folder / missing).write_bytes(content)
    with pytest.raises(InputError, match="it has no config.json, model.safetensors, ssdd_hub.json: give one that"):
        pack_model(folder / "gone", "ann/m")


def spoil_record(folder, change):
    path = folder / "ssdd_hub.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record.pop("architecture"), "incomplete .KeyError..architecture"),
        (lambda record: record["teacher"].pop("pixel_space"), "incomplete .KeyError..pixel_space"),
        (lambda record: record["teacher"].update(features="guesses"), "incomplete .KeyError..guesses"),
        (
            lambda record: record["teacher"].update(license=3.5, pixel_space=3),
            "teacher.license must be text, got 3.5; teacher.pixel_space",
        ),
        (lambda record: record.update(provenance=[]), "provenance must be an object"),
        (lambda record: record.update(format_version=9), "states format_version 9"),
    ],
)
def test_a_damaged_record_is_refused_with_a_message(folder, change, problem):
    spoil_record(folder, change)
    with pytest.raises(InputError, match=problem):
        pack_model(folder, "ann/m")


def test_a_token_in_the_record_is_not_sent_and_not_shown(folder):
    secret = "hf_" + "a1B2" * 8
    spoil_record(folder, lambda record: record["provenance"].update(command=f"HF_TOKEN={secret} accelerate launch"))
    with pytest.raises(InputError, match="looks like an access token: remove it, and revoke the token") as caught:
        pack_model(folder, "ann/m")
    assert secret not in str(caught.value)


def train(folder, distilled=None, seed=0, name="ssdd_convnet3", **args):
    args = args or STUDENT["model_args"]
    return save_student(name, distilled or full_set(), folder, {"name": SET, "revision": "v1"}, seed, **args)


def test_a_student_is_pretrained_by_the_recipe_of_the_set(tmp_path):
    start = train(tmp_path / "start", full_set(use={"epochs": 0}))
    by_hand = build_student("ssdd_convnet3", num_targets=4, in_chans=1, image_size=16, widths=[4, 6, 8])
    by_hand.load_state_dict(start.state_dict())
    pretrain_student(by_hand, full_set())
    got = train(tmp_path / "student")
    for name, expected in by_hand.state_dict().items():
        assert torch.equal(got.state_dict()[name], expected), name
    assert not torch.equal(got.head.weight, start.head.weight)
    # It is there to be trained on.
    assert not got.training and all(parameter.requires_grad for parameter in got.parameters())


@pytest.mark.parametrize(
    ("name", "args"), [("ssdd_convnet3", STUDENT["model_args"]), ("test_vit", {"proj_drop_rate": 0.5})]
)
def test_a_student_depends_on_its_seed_and_on_nothing_else(tmp_path, name, args):
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        expected = torch.manual_seed(number) and torch.rand(3)
        torch.manual_seed(number)
        train(tmp_path / f"{number}", seed=seed, name=name, **args)
        assert torch.equal(torch.rand(3), expected)  # the global generator is left alone
        weights.append((tmp_path / f"{number}" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_student_sees_the_pixel_space_that_the_set_states(tmp_path):
    train(tmp_path / "student", full_set(student_pixel_space={"mean": [0.1], "std": [0.7]}))
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])) == ((0.1,), (0.7,))


def test_a_student_is_taken_as_it_is_only_for_the_same_set_under_the_same_licence(tmp_path):
    def pretrain(place, **options):
        published = Published(SET, "0" * 40, "v1", "https://hub/ann/digits")
        return Student(*STUDENT_OF, PUPIL).pretrain(tmp_path / place, published, tmp_path / "out", **options)

    for place, facts in (("set", {}), ("same", {}), ("recipe", {"use": {"epochs": 2}})):
        full_set(**facts).save(tmp_path / place)
    negative = full_set()
    negative.targets.neg_()
    negative.save(tmp_path / "targets")
    first = pretrain("set")
    before = contents(first)
    assert pretrain("same") == first and contents(first) == before
    train(first, seed=1)
    assert contents(first) == before  # what is there is kept
    # The tag is the same: of a repository that was removed, and made anew.
    others = [pretrain("targets"), pretrain("recipe"), pretrain("set", licence="mit"), pretrain("set", seed=1)]
    assert len({first, *others}) == 5 and all((other / "model.safetensors").is_file() for other in others)


def test_a_set_of_no_known_licence_gives_a_student_of_none(tmp_path):
    train(tmp_path / "student", full_set(license=None))
    card = pack_model(tmp_path / "student", "ann/m").files["README.md"].path_or_fileobj.decode()
    assert header_of(card)["license"] == "unknown" and "| This model | unknown |" in card


def test_a_student_that_cannot_be_built_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="student 'ssdd_convnet9' is not a timm model"):
        train(tmp_path / "student", name="ssdd_convnet9")
    with pytest.raises(InputError, match="needs at least 32 pixels a side, got 16"):
        train(tmp_path / "student", widths=[4] * 5)
    assert not list(tmp_path.iterdir())


def test_a_teacher_whose_licence_alone_changed_is_not_published_beside_its_set(folder, tmp_path):
    teacher, versions = build_teacher(f"local-dir:{folder}"), describe_versions()
    own = full_set(teacher=teacher.identity(), versions=versions).save(tmp_path / "set")
    check_teacher(own, folder)
    other = {**teacher.identity(), "license": "cc-by-nc-4.0"}
    changed = full_set(teacher=other, versions=versions, license="cc-by-nc-4.0").save(tmp_path / "changed")
    with pytest.raises(
        InputError, match="under the licence 'cc-by-nc-4.0', and .* states 'mit': find out which holds"
    ):
        check_teacher(changed, folder)
