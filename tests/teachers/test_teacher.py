import json
import os
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.features import pre_logits
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.sets.check_places import check_place
from ssdd_hub.teachers.folder import read_record
from ssdd_hub.teachers.teacher import Teacher, TeacherSettings, build_teacher
from ssdd_hub.teachers.training import new_backbone


def small_resnet(**args):
    return build_teacher("ssdd_resnet10", pretrained=False, channels=(4, 4, 4, 4), **args)


def load(folder, **args):
    return build_teacher(f"local-dir:{folder}", **args)


def draw_pixels(count=7, channels=3, size=32):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# The contract of every teacher, of which `tests/models/test_feature_contract.py` has more


@pytest.mark.parametrize(
    ("name", "args"),
    [("ssdd_resnet10", {"channels": (4, 8, 8, 8)}), ("ssdd_convnet3", {"widths": (4, 8), "img_size": 32})],
)
def test_features_are_timms_pre_logits_of_normalised_pixels_and_leave_the_teacher_as_it_is(name, args):
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **args)
    with torch.no_grad():
        backbone.train()(torch.randn(8, 3, 32, 32))
    teacher, pixels = Teacher(backbone, PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 32, name), draw_pixels()
    by_hand = torch.stack([(pixels[:, c] - (0.5, 0.4, 0.3)[c]) / (0.2, 0.3, 0.4)[c] for c in range(3)], 1)
    expected = backbone.forward_head(backbone.forward_features(by_hand), pre_logits=True)
    before = teacher.weights_sha256()
    torch.testing.assert_close(teacher(pixels), expected, rtol=1e-5, atol=1e-5)
    alone = torch.cat([teacher(image[None]) for image in pixels])
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
    assert teacher.weights_sha256() == before and expected.shape == (7, teacher.feature_dim)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for same in (teacher.train(), teacher.train(True), nn.Sequential(teacher).train()[0]):
        assert same is teacher and not any(module.training for module in teacher.modules())


# Images that are not what the teacher expects


def test_smaller_images_and_those_that_are_too_tall_only_are_resized_too(small_teacher):
    for shape in ((8, 8), (24, 16)):
        pixels = torch.rand(2, 3, *shape)
        resized = functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.equal(small_teacher(channels=3)(pixels), small_teacher(channels=3)(resized))


def test_overshoots_of_the_resizing_stay_pixels(small_teacher, monkeypatch):
    teacher, seen = small_teacher(), []
    monkeypatch.setattr(teacher.backbone, "forward_features", lambda images: seen.append(images))
    monkeypatch.setattr(teacher.backbone, "forward_head", lambda maps, pre_logits: torch.zeros(1, 24))
    pixels = torch.zeros(1, 1, 8, 8)
    pixels[..., 4:] = 1.0
    teacher(pixels)
    resized = teacher.pixel_space.denormalise(seen[0])
    assert resized.min() > -1e-6 and resized.max() < 1 + 1e-6
    assert functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).max() > 1.01


def test_grey_images_are_repeated_for_three_channels_and_coloured_ones_refused_for_one(small_teacher):
    teacher, grey = small_teacher(channels=3), draw_pixels(channels=1, size=16)
    assert torch.equal(teacher(grey), teacher(grey.repeat(1, 3, 1, 1)))
    message = r"the teacher small-0 takes images of 1 channel\(s\), got 3: pass --data.mode grey"
    with pytest.raises(InputError, match=message):
        small_teacher(channels=1)(draw_pixels(size=16))


def test_a_teacher_in_double_precision_gives_the_features_of_single_precision(small_teacher):
    pixels = draw_pixels(channels=1, size=16)
    features = small_teacher(dtype=torch.float64)(pixels.double())
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.float(), small_teacher()(pixels), rtol=1e-5, atol=1e-5)


# What provenance records


def test_the_hash_depends_on_each_bit_shape_and_type_and_not_on_the_memory_layout(small_teacher):
    first = small_teacher().weights_sha256()
    assert small_teacher().weights_sha256() == first
    assert (
        len({small_teacher(seed=1).weights_sha256(), small_teacher(dtype=torch.float64).weights_sha256(), first}) == 3
    )
    for name in ("blocks.0.0.weight", "blocks.2.1.running_var", "blocks.1.1.num_batches_tracked"):
        teacher = small_teacher()
        teacher.backbone.state_dict()[name].reshape(-1).view(torch.uint8)[0] ^= 1
        assert teacher.weights_sha256() != first
    teacher = small_teacher().to(memory_format=torch.channels_last)
    assert not teacher.backbone.blocks[1][0].weight.is_contiguous() and teacher.weights_sha256() == first
    weight = teacher.backbone.blocks[0][0].weight
    weight.data = weight.data.contiguous().reshape(4, 1, 9, 1)
    assert teacher.weights_sha256() != first


def test_a_teacher_describes_itself_as_json(small_teacher):
    teacher = small_teacher()
    assert json.loads(json.dumps(teacher.identity())) == {
        "name": "small-0",
        "weights_sha256": teacher.weights_sha256(),
        "structure_sha256": teacher.identity()["structure_sha256"],
        "license": "mit",
        "feature_dim": 24,
        "features": "pre_logits",
        "input_size": 16,
        "interpolation": "bicubic",
        "pixel_space": {"mean": [0.4], "std": [0.3]},
    }


def test_networks_of_equal_weights_and_other_padding_are_told_apart():
    facts = []
    for padding in (1, 2):
        torch.manual_seed(0)
        facts.append(small_resnet(stem_padding=padding).identity())
    assert facts[0]["weights_sha256"] == facts[1]["weights_sha256"]
    assert facts[0]["structure_sha256"] != facts[1]["structure_sha256"]


# Saving


@pytest.fixture
def trained():
    backbone = new_backbone("ssdd_convnet3", 1, 16, 0, widths=(4, 8))
    return Teacher(backbone, PixelSpace((0.3,), (0.2,)), 16, "ssdd_convnet3")


@pytest.fixture
def folder(trained, tmp_path):
    trained.save(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_timm_alone_reads_the_folder_of_safetensors_and_json(trained, tmp_path):
    folder = tmp_path / "runs" / "teacher"
    trained.save(folder)
    assert os.listdir(folder.parent) == ["teacher"]
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert folder.stat().st_mode == folder.parent.stat().st_mode
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert [tuple(config[name]) for name in ("mean", "std", "input_size")] == [(0.3,), (0.2,), (1, 16, 16)]
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == ("bicubic", 1.0, "squash")
    pixels = draw_pixels(channels=1, size=16)
    torch.testing.assert_close(pre_logits(model.eval(), (pixels - 0.3) / 0.2), trained(pixels), rtol=0, atol=1e-6)
    # Without a record the folder's own name, not its path, names the teacher.
    assert load(folder).name == "local-dir:teacher"


def test_a_teacher_that_is_there_is_kept(trained, folder):
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        trained.backbone.blocks[0][0].weight += 1
    trained.save(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_an_interrupted_save_leaves_nothing(trained, tmp_path, monkeypatch):
    def interrupted(model, folder, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd_hub.teachers.folder.save_for_hf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(tmp_path / "teacher")
    assert os.listdir(tmp_path) == []


def test_channels_last_weights_are_saved_and_stay_as_they_are(tmp_path):
    teacher = small_resnet().to(memory_format=torch.channels_last)
    teacher.save(tmp_path / "teacher")
    assert not teacher.backbone.layer1[0].conv1.weight.is_contiguous()
    torch.testing.assert_close(load(tmp_path / "teacher")(draw_pixels()), teacher(draw_pixels()), rtol=0, atol=1e-6)


def test_a_network_that_timm_cannot_build_is_not_saved(small_teacher, tmp_path):
    message = "the teacher small-0 cannot be saved for timm, which does not know a ConvNet: build it by timm"
    with pytest.raises(InputError, match=message):
        small_teacher().save(tmp_path / "teacher")
    assert os.listdir(tmp_path) == []


def test_a_network_that_timm_would_build_otherwise_is_not_saved(tmp_path):
    """Neither its config nor its weights tell of layers without weights that were replaced."""
    network = timm.create_model("resnet10t", num_classes=0).eval()
    network.maxpool = nn.Identity()
    teacher = build_teacher(network, input_size=32)
    with pytest.raises(InputError, match="ResNet cannot be saved for timm: what timm builds .* has other features"):
        teacher.save(tmp_path / "teacher")
    assert os.listdir(tmp_path) == []


PROVENANCE = {
    "objective": {"name": "barlow_twins", "citation": "Zbontar et al.", "lambda_param": 0.005},
    "source": {"name": "digits", "license": "cc-by-4.0", "num_images": 1000},
    "seed": 5,
    "settings": {"pretrain": {"epochs": 3}},
    "command": "accelerate launch recipes/train_teacher.py",
}


def test_the_making_of_a_teacher_survives_saving_loading_and_saving_again(trained, tmp_path):
    trained.license = "cc-by-4.0"
    trained.save(tmp_path / "first", PROVENANCE)
    assert sorted(os.listdir(tmp_path / "first")) == ["README.md", "config.json", "model.safetensors", "ssdd_hub.json"]
    first = load(tmp_path / "first")
    assert (first.name, first.license, first.provenance) == ("ssdd_convnet3", "cc-by-4.0", PROVENANCE)
    first.save(tmp_path / "second")
    second = load(tmp_path / "second")
    assert second.identity() == first.identity() == trained.identity()
    assert second.public_provenance() == {name: PROVENANCE[name] for name in ("objective", "source", "seed")}
    cards = [(tmp_path / name / "README.md").read_text() for name in ("first", "second")]
    assert cards[1] == cards[0].replace("local-dir:../first", "local-dir:../second")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_weights_that_are_not_the_recorded_ones_are_refused_with_what_to_do(trained, tmp_path):
    folder = tmp_path / "teacher"
    trained.save(folder, PROVENANCE)
    flip_a_bit(folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors does not hold the weights that .* states .*restore it"):
        load(folder)


def test_other_users_may_read_a_teacher(trained, tmp_path):
    trained.save(tmp_path / "teacher", PROVENANCE)
    (tmp_path / "plain").write_text("")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "teacher").iterdir()}
    assert {*modes.values()} == {(tmp_path / "plain").stat().st_mode} and len(modes) == 4


def test_what_timm_states_of_its_own_weights_is_not_said_of_others(tmp_path):
    backbone = timm.create_model("test_resnet", num_classes=0)
    assert backbone.pretrained_cfg["license"] == "apache-2.0" and backbone.pretrained_cfg["tag"] == "r160_in1k"
    Teacher(backbone, PixelSpace((0.5,) * 3, (0.5,) * 3), 32, "test_resnet", "cc0-1.0").save(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())["pretrained_cfg"]
    assert config["license"] == "cc0-1.0" and config["tag"] is None
    assert load(tmp_path / "teacher").license == "cc0-1.0"
    assert backbone.pretrained_cfg["license"] == "apache-2.0"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A cache of the Hub without a network; returns the folder of the snapshot of `someone/teacher`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--teacher"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    return repo / "snapshots" / ("a" * 40)


@pytest.mark.parametrize("name", ["hf-hub:someone/teacher", f"hf-hub:someone/teacher@{'a' * 40}"])
def test_a_teacher_on_the_hub_brings_its_making_and_its_licence(trained, cached, name):
    trained.license = "dinov3-license"
    trained.save(cached, PROVENANCE)
    teacher = build_teacher(name)
    assert (teacher.name, teacher.license, teacher.provenance) == (name, "dinov3-license", PROVENANCE)
    assert teacher.weights_sha256() == trained.weights_sha256()
    (cached / "ssdd_hub.json").unlink()
    assert build_teacher(name).provenance == {}


def record(**provenance):
    return json.dumps({"format_version": 1, "teacher": {"name": "a"}, "provenance": provenance})


def nested(depth):
    """A record of so many objects and lists inside each other."""
    return record(note=0).replace("0}", "[" * (depth - 2) + "]" * (depth - 2) + "}")


@pytest.mark.parametrize("text", [nested(20), record(seconds=None, scores=None), record(seconds=3, scores=[{"n": 1}])])
def test_a_record_of_any_maker_makes_a_card(folder, tmp_path, text):
    (folder / "ssdd_hub.json").write_text(text)
    load(folder).save(tmp_path / "second")
    assert (tmp_path / "second" / "README.md").is_file()


def refuse(status, kind=HfHubHTTPError):
    return kind(str(status), response=SimpleNamespace(status_code=status, headers={}, request=None))


def uncached(cause=None):
    error = LocalEntryNotFoundError("cannot find the requested files")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (refuse(404, RemoteEntryNotFoundError), True),
        (uncached(), True),
        (uncached(OfflineModeIsEnabled("offline")), True),
        (refuse(429), False),
        (refuse(503), False),
        (uncached(refuse(503)), False),
        (uncached(ConnectionError("no route")), False),
        (TimeoutError("too slow"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_only_a_known_absence_of_a_record_counts_as_none(monkeypatch, error, known):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("ssdd_hub.teachers.folder.hf_hub_download", fail)
    if known:
        assert read_record("hf-hub:someone/teacher") == ("hf-hub:someone/teacher", {}, {})
        return
    message = r"ssdd_hub.json of someone/teacher, which tells how .* cannot be had \(.*\): try again"
    with pytest.raises(InputError, match=message):
        read_record("hf-hub:someone/teacher@main")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "is no record of a teacher .*remove this file to use the weights without it"),
        ("[]", "is no record of a teacher in format 1"),
        ("[" * 100_000, "is no record of a teacher .RecursionError"),
        ('{"format_version": 1, "teacher": {"name": "a"}}', "provenance is missing"),
        ('{"format_version": 2, "teacher": {"name": "a"}, "provenance": {}}', "in format 1"),
        ('{"format_version": 1, "teacher": {"name": 3}, "provenance": {}}', "teacher.name must be text, got 3"),
        ('{"format_version": 1, "teacher": {"name": "a"}, "provenance": []}', "provenance must be an object, got"),
        ('{"format_version": 1, "teacher": {"name": "a"}, "provenance": {"seed": NaN}}', "is no record of a teacher"),
        ('{"format_version": 1, "teacher": {"name": "\\ud800"}, "provenance": {}}', "is no record of a teacher"),
        (nested(21), "holds lists or objects more than 20 deep in each other: fetch the teacher again"),
        (nested(900), "more than 20 deep|RecursionError"),
        (record(seconds="3"), "provenance.seconds must be a number of at least 0, got '3'.: fetch the teacher again"),
        (record(seconds=10**400), "provenance.seconds must be a finite number of usual size, got 10000"),
        (record(scores=[1]), r"provenance.scores\[0\] must be an object, got 1.: fetch the teacher again"),
        (record(scores={"mean": 1}), "provenance.scores must be a list, got"),
        (record(scores=[{"mean": 0.5}, {"mean": "0.5"}]), r"provenance.scores\[1\].mean must be a number, got '0.5'"),
        (record(scores=[{"mean": 0.5, "std": [1]}]), r"provenance.scores\[0\].std must be a number, got \[1\]"),
        (" " * (2**20 + 1), "is larger than the 1048576 bytes that a record may have"),
    ],
)
def test_a_record_that_could_spoil_a_run_is_refused(folder, record, message):
    (folder / "ssdd_hub.json").write_text(record)
    with pytest.raises(InputError, match=message):
        load(folder)


# Loading


def test_a_teacher_is_built_by_name_with_what_timm_states_of_it():
    teacher = build_teacher("test_vit", pretrained=False)
    assert teacher.pixel_space == PixelSpace((0.5,) * 3, (0.5,) * 3)
    assert (teacher.input_size, teacher.name) == (160, "test_vit")
    assert build_teacher("ssdd_resnet10", pretrained=False, channels=(4, 4, 4, 12)).feature_dim == 12


def test_a_module_is_a_teacher():
    module = timm.create_model("test_resnet", num_classes=10)
    teacher = build_teacher(module)
    assert teacher.backbone is module and teacher.name == "ResNet"
    assert teacher.feature_dim == module.head_hidden_size
    assert teacher.pixel_space.mean == module.pretrained_cfg["mean"]


def test_the_licence_that_timm_states_is_that_of_stored_weights_only(monkeypatch):
    create = timm.create_model
    module = create("test_resnet", num_classes=0)
    assert module.pretrained_cfg["license"] == "apache-2.0"
    assert build_teacher(module).license == build_teacher("test_resnet", pretrained=False).license == "unknown"
    assert build_teacher(module, license="cc0-1.0").license == "cc0-1.0"
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))
    assert build_teacher("test_resnet").license == "apache-2.0"
    assert build_teacher("test_resnet", license="mit").license == "mit"


def test_a_module_without_timms_contract_is_refused():
    message = "a teacher needs timm's forward_features and forward_head; Sequential has no forward_features"
    with pytest.raises(InputError, match=message):
        build_teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet_9000", {}, "teacher backbone 'resnet_9000' .* cannot be built"),
        ("owner/name", {}, "cannot be built.*hf-hub:OWNER/NAME"),
        ("local-dir:/no/such/folder", {}, "cannot be built.*local-dir:FOLDER with config.json and model.safetensors"),
        ("test_resnet", {"pretrained": False, "colour": 3}, "colour"),
    ],
)
def test_a_backbone_that_is_nowhere_or_an_argument_that_it_does_not_take_is_refused(name, args, message):
    with pytest.raises(InputError, match=message):
        build_teacher(name, **args)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_weights_are_not_slipped_in_as_model_arguments(name):
    message = f"teacher.model_args must leave out {name}, which other settings decide .other weights: --teacher.check"
    with pytest.raises(SettingsError, match=message):
        TeacherSettings(model_args={name: {"file": "nc.pth"}})
    with pytest.raises(InputError, match=f"must be built without {name}: pass a file .* as --teacher.checkpoint"):
        build_teacher("test_resnet", pretrained=False, **{name: {"file": "nc.pth"}})
    with pytest.raises(InputError, match=f"must be built without {name}"):
        new_backbone("test_resnet", 3, 32, 0, **{name: {"file": "nc.pth"}})


# Untrusted folders


@pytest.mark.parametrize("as_tensors", [True, False], ids=["torch.save", "plain pickle"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_folder_is_not_unpickled(folder, tmp_path, name, as_tensors, attack):
    mark = tmp_path / "attacked"
    (folder / "model.safetensors").unlink()
    content = {"state_dict": attack(mark)}
    if as_tensors:
        torch.save(content, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="cannot be built|its list of tensors"):
        load(folder)
    assert not mark.exists()
    with open(folder / name, "rb") as file:
        torch.load(file, weights_only=False) if as_tensors else pickle.load(file)
    assert mark.exists(), "the attack of this test would not have worked anyway"


def test_weights_in_a_harmless_pickle_are_read(trained, folder):
    (folder / "model.safetensors").unlink()
    torch.save(trained.backbone.state_dict(), folder / "pytorch_model.bin")
    assert load(folder).weights_sha256() == trained.weights_sha256()


def test_an_error_of_timm_takes_two_lines_at_most(tmp_path):
    build_teacher("test_vit", pretrained=False).save(tmp_path / "teacher")
    save_file({"cls_token": torch.zeros(1, 1, 64)}, tmp_path / "teacher" / "model.safetensors")
    with pytest.raises(InputError, match="Missing key") as caught:
        load(tmp_path / "teacher")
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)


# Size, pixel space and features that are asked for


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [("mixer_s32_224", 64, "bicubic"), ("deit_tiny_patch16_224", 48, "bicubic"), ("test_resnet", 40, "bilinear")],
)
def test_another_size_is_taken_where_the_model_allows_it_and_images_are_resized_as_its_config_says(name, size, mode):
    teacher, pixels = build_teacher(name, pretrained=False, input_size=size), draw_pixels(2)
    resized = functional.interpolate(pixels, (size, size), mode=mode, antialias=True).clamp(0, 1)
    assert teacher.input_size == size and teacher.interpolation == mode
    expected = pre_logits(teacher.backbone, teacher.pixel_space.normalise(resized))
    torch.testing.assert_close(teacher(pixels), expected, rtol=1e-5, atol=1e-5)


def test_stored_weights_are_read_at_another_size(tmp_path):
    backbone = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=0, embed_dim=12, depth=1)
    Teacher(backbone, PixelSpace((0.5,) * 3, (0.5,) * 3), 32, "vit").save(tmp_path / "teacher")
    assert load(tmp_path / "teacher").input_size == 32
    teacher = load(tmp_path / "teacher", input_size=64)
    assert teacher.input_size == 64 and teacher.backbone.pos_embed.shape == (1, 17, 12)
    assert torch.equal(teacher.backbone.blocks[0].mlp.fc1.weight, backbone.blocks[0].mlp.fc1.weight)


def test_a_size_or_an_interpolation_that_a_teacher_cannot_have_is_refused():
    with pytest.raises(InputError, match="images of 3 channel.s. and 64 pixels .*choose teacher.input_size"):
        build_teacher(timm.create_model("deit_tiny_patch16_224", depth=1), input_size=64)
    module = timm.create_model("test_resnet", num_classes=0)
    stated = module.pretrained_cfg
    module.pretrained_cfg = {**stated, "input_size": (3, 64, 48)}
    with pytest.raises(InputError, match="the teacher ResNet takes 64x48 pixels, ours are square: give teacher.input"):
        build_teacher(module)
    assert build_teacher(module, input_size=48).input_size == 48
    module.pretrained_cfg = {**stated, "interpolation": "lanczos"}
    with pytest.raises(InputError, match="resized bicubic or bilinear, ResNet asks for 'lanczos'"):
        build_teacher(module)


def test_a_model_built_for_grey_images_takes_them():
    teacher = build_teacher("ssdd_resnet10", pretrained=False, in_chans=1, channels=(4, 4, 4, 8))
    assert teacher.pixel_space == PixelSpace((0.5,), (0.5,)) and teacher(draw_pixels(channels=1)).shape == (7, 8)
    with pytest.raises(InputError, match=r"has 1 channel\(s\), and timm states mean and std of 3: give teacher.mean"):
        build_teacher("resnet10t", pretrained=False, in_chans=1)
    with pytest.raises(SettingsError, match="as many means as stds"):
        build_teacher("test_resnet", pretrained=False, mean=[0.5, 0.5, 0.5])
    given = build_teacher("resnet10t", pretrained=False, in_chans=1, input_size=32, mean=[0.1], std=[0.2])
    assert given.pixel_space == PixelSpace((0.1,), (0.2,))


# Checkpoints of others


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("ssdd_resnet10", channels=(4, 4, 4, 8), stem_padding=2, num_classes=0).eval()
    torch.save({f"backbone.{name}": value for name, value in network.state_dict().items()}, tmp_path / "last.ckpt")
    return network, tmp_path / "last.ckpt"


def test_a_checkpoint_makes_a_ready_teacher_of_unknown_licence(checkpoint):
    network, path = checkpoint
    args = {"channels": [4, 4, 4, 8], "stem_padding": 2}
    settings = TeacherSettings("ssdd_resnet10", checkpoint=str(path), mean=[0.4] * 3, std=[0.3] * 3, model_args=args)
    assert settings.ready and not settings.pretrained and not TeacherSettings().ready
    assert TeacherSettings(backbone="local-dir:a", pretrained=True).ready
    teacher = build_teacher(settings.backbone, **settings.building())
    torch.testing.assert_close(teacher(draw_pixels()), network((draw_pixels() - 0.4) / 0.3), rtol=1e-5, atol=1e-5)
    assert teacher.license == "unknown"
    assert teacher.public_provenance() == {
        "checkpoint": {"file": "last.ckpt", "layout": "names", "prefix": "backbone.", "ignored": {}}
    }


def test_a_checkpoint_takes_the_space_but_not_the_licence_that_timm_states(tmp_path):
    module = timm.create_model("test_resnet", num_classes=0)
    torch.save(module.state_dict(), tmp_path / "last.pt")
    teacher = build_teacher("test_resnet", checkpoint=tmp_path / "last.pt")
    assert teacher.license == "unknown" and teacher.pixel_space.mean == module.pretrained_cfg["mean"]
    assert build_teacher("test_resnet", checkpoint=tmp_path / "last.pt", license="cc0-1.0").license == "cc0-1.0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pretrained": True, "checkpoint": "a.pt"},
            "takes the place of stored weights: leave out --teacher.pretrained",
        ),
        ({"features": "tokens"}, "teacher.features must be one of pre_logits, cls, mean, got 'tokens'"),
        ({"pretrained": True, "input_size": 0}, "teacher.input_size must be at least 1, got 0"),
        ({"pretrained": True, "mean": [0.5]}, "teacher.mean and teacher.std must be given together"),
        ({"input_size": 32}, "leave out teacher.input_size: a teacher that is trained here sees the source images"),
        ({"mean": [0.5], "std": [0.5]}, "leave out teacher.mean, teacher.std: a teacher that is trained here"),
        ({"model_args": {"img_size": 32}}, "teacher.model_args must leave out img_size, which other settings decide"),
        (
            {"model_args": {"num_classes": 3, "pretrained": True, "channels": [4]}},
            "teacher.model_args must leave out pretrained, num_classes, which other settings decide",
        ),
        (
            {"backbone": "local-dir:a"},
            "teacher.backbone 'local-dir:a' names stored weights, so pass --teacher.pretrained true as well",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        TeacherSettings(**settings)


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        ({"mean": [0.0]}, "pixel_space is recorded as .*config.json states .*--teacher.mean"),
        ({"interpolation": "bilinear"}, "interpolation is recorded as 'bicubic', config.json states 'bilinear'"),
    ],
)
def test_a_configuration_that_is_not_the_recorded_one_is_refused(trained, tmp_path, stated, match):
    folder = tmp_path / "teacher"
    trained.save(folder, PROVENANCE)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= stated
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=match):
        load(folder)
    # What the caller gives is not compared.
    given = {"mean": [0.1], "std": [0.2], "input_size": 16}
    if "interpolation" not in stated:
        assert build_teacher(f"local-dir:{folder}", **given).pixel_space.mean == (0.1,)


def test_weights_in_another_file_than_the_recorded_ones_are_refused(trained, tmp_path):
    folder = tmp_path / "teacher"
    trained.save(folder, PROVENANCE)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="must have its weights in model.safetensors, .* it has pytorch_model.bin"):
        load(folder)
    assert "model.safetensors" in [finding.place for finding in check_place(folder) if finding.level == "error"]


def test_weights_that_are_not_those_of_the_record_beside_them_are_refused(trained, tmp_path):
    folder = tmp_path / "teacher"
    trained.save(folder, PROVENANCE)
    assert load(folder).weights_sha256() == trained.weights_sha256()
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.is_floating_point())
    save_file({**weights, name: -weights[name]}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="does not hold the weights .*weights_sha256 is recorded as"):
        load(folder)
    assert [finding.place for finding in check_place(folder) if finding.level == "error"] == ["model.safetensors"]
    (folder / "ssdd_hub.json").unlink()
    assert load(folder).weights_sha256() != trained.weights_sha256()


@pytest.mark.parametrize(
    "stated", [{"mean": "text"}, {"std": ["a"]}, {"mean": [float("nan")] * 3}, {"input_size": "3"}]
)
def test_a_model_that_states_no_usable_images_is_refused(stated):
    backbone = timm.create_model("test_resnet", num_classes=0)
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, **stated}
    with pytest.raises(InputError):
        build_teacher(backbone)
