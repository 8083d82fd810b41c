import json
import os
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from ssdd_hub.backbones import input_args, pre_logits
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.pretrain import new_backbone
from ssdd_hub.teacher import Teacher, TeacherSettings, build_teacher

MODELS = {
    "ssdd_resnet10": {"channels": (4, 8, 8, 8)},
    "ssdd_convnet3": {"widths": (4, 8), "img_size": 32},
    "test_resnet": {},
    "test_vit": {"img_size": 32},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
}


@pytest.fixture(scope="module", params=MODELS)
def teacher(request):
    """A teacher of each kind with batch statistics of its own, for images of 32x32."""
    torch.manual_seed(0)
    backbone = timm.create_model(request.param, num_classes=0, **MODELS[request.param])
    with torch.no_grad():
        backbone.train()(torch.randn(8, 3, 32, 32))
    return Teacher(backbone, PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 32, request.param)


def draw_pixels(count=7, channels=3, size=32):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


# The contract of every teacher


def test_the_declared_width_is_the_width_produced(teacher):
    assert teacher(draw_pixels()).shape == (7, teacher.feature_dim)


def test_features_are_finite_and_differ_between_images(teacher):
    features = teacher(draw_pixels())
    assert features.isfinite().all() and features.dtype == torch.float32
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_features_of_an_image_do_not_depend_on_its_batch(teacher):
    pixels = draw_pixels()
    alone = torch.cat([teacher(image[None]) for image in pixels])
    torch.testing.assert_close(teacher(pixels), alone, rtol=1e-5, atol=1e-5)


def test_features_are_the_same_each_time_and_leave_the_teacher_as_it_is(teacher):
    before = teacher.weights_sha256()
    assert torch.equal(teacher(draw_pixels()), teacher(draw_pixels()))
    assert teacher.weights_sha256() == before


def test_a_teacher_is_frozen_and_stays_in_eval_mode(teacher):
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(draw_pixels().requires_grad_()).requires_grad
    for asked in (teacher.train(), teacher.train(True), nn.Sequential(teacher).train()[0]):
        assert asked is teacher
        assert not any(module.training for module in teacher.modules())


def test_features_are_timms_pre_logits_of_normalised_pixels(teacher):
    pixels = draw_pixels()
    by_hand = torch.stack([(pixels[:, c] - (0.5, 0.4, 0.3)[c]) / (0.2, 0.3, 0.4)[c] for c in range(3)], 1)
    backbone = teacher.backbone
    expected = backbone.forward_head(backbone.forward_features(by_hand), pre_logits=True)
    torch.testing.assert_close(teacher(pixels), expected, rtol=1e-5, atol=1e-5)


def test_a_saved_teacher_is_read_back_whole(teacher, tmp_path):
    teacher.save(tmp_path / "teacher")
    again = build_teacher(f"local-dir:{tmp_path / 'teacher'}")
    torch.testing.assert_close(again(draw_pixels()), teacher(draw_pixels()), rtol=0, atol=1e-6)
    assert again.weights_sha256() == teacher.weights_sha256()
    assert again.pixel_space == teacher.pixel_space
    assert (again.input_size, again.feature_dim) == (32, teacher.feature_dim)


# Images that are not what the teacher expects


def test_other_sizes_are_resized_with_bicubic_interpolation(small_teacher):
    teacher, pixels = small_teacher(channels=3), draw_pixels(size=24)
    resized = functional.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(teacher(pixels), teacher(resized))
    assert teacher(draw_pixels(size=8)).shape == (7, 24)


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


def test_grey_images_are_repeated_for_a_teacher_of_three_channels(small_teacher):
    teacher, grey = small_teacher(channels=3), draw_pixels(channels=1, size=16)
    assert torch.equal(teacher(grey), teacher(grey.repeat(1, 3, 1, 1)))


def test_coloured_images_are_refused_by_a_teacher_of_one_channel(small_teacher):
    message = r"the teacher small-0 takes images of 1 channel\(s\), got 3: pass --data.mode grey"
    with pytest.raises(InputError, match=message):
        small_teacher(channels=1)(draw_pixels(size=16))


def test_a_teacher_in_double_precision_gives_the_features_of_single_precision(small_teacher):
    pixels = draw_pixels(channels=1, size=16)
    features = small_teacher(dtype=torch.float64)(pixels.double())
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.float(), small_teacher()(pixels), rtol=1e-5, atol=1e-5)


# What provenance records


def test_the_hash_changes_with_one_bit_of_a_weight_or_of_a_buffer(small_teacher):
    first = small_teacher().weights_sha256()
    assert small_teacher().weights_sha256() == first != small_teacher(seed=1).weights_sha256()
    for name in ("blocks.0.0.weight", "blocks.2.1.running_var", "blocks.1.1.num_batches_tracked"):
        teacher = small_teacher()
        teacher.backbone.state_dict()[name].reshape(-1).view(torch.uint8)[0] ^= 1
        assert teacher.weights_sha256() != first


def test_the_hash_does_not_depend_on_the_memory_layout_but_on_shapes_and_types(small_teacher):
    teacher, first = small_teacher(), small_teacher().weights_sha256()
    teacher.to(memory_format=torch.channels_last)
    assert not teacher.backbone.blocks[1][0].weight.is_contiguous() and teacher.weights_sha256() == first
    assert small_teacher(dtype=torch.float64).weights_sha256() != first
    weight = teacher.backbone.blocks[0][0].weight
    weight.data = weight.data.contiguous().reshape(4, 1, 9, 1)
    assert teacher.weights_sha256() != first


def test_a_teacher_describes_itself_as_json(small_teacher):
    teacher = small_teacher()
    assert json.loads(json.dumps(teacher.describe())) == {
        "name": "small-0",
        "weights_sha256": teacher.weights_sha256(),
        "license": "mit",
        "feature_dim": 24,
        "features": "timm pre-logits",
        "input_size": 16,
        "pixel_space": {"mean": [0.4], "std": [0.3]},
    }


# Saving


@pytest.fixture
def trained():
    backbone = new_backbone("ssdd_convnet3", 1, 16, 0, widths=(4, 8))
    return Teacher(backbone, PixelSpace((0.3,), (0.2,)), 16, "ssdd_convnet3")


def test_a_folder_of_a_teacher_holds_safetensors_and_json_only(trained, tmp_path):
    trained.save(tmp_path / "runs" / "teacher")
    assert sorted(os.listdir(tmp_path / "runs")) == ["teacher"]
    assert sorted(os.listdir(tmp_path / "runs" / "teacher")) == ["config.json", "model.safetensors"]


def test_timm_alone_reads_the_folder(trained, tmp_path):
    trained.save(tmp_path / "teacher")
    model = timm.create_model(f"local-dir:{tmp_path / 'teacher'}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert [tuple(config[name]) for name in ("mean", "std", "input_size")] == [(0.3,), (0.2,), (1, 16, 16)]
    pixels = draw_pixels(channels=1, size=16)
    torch.testing.assert_close(pre_logits(model.eval(), (pixels - 0.3) / 0.2), trained(pixels), rtol=0, atol=1e-6)


def test_the_folder_is_as_open_as_any_other(trained, tmp_path):
    (tmp_path / "other").mkdir()
    trained.save(tmp_path / "teacher")
    assert (tmp_path / "teacher").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_teacher_that_is_there_is_kept(trained, small_teacher, tmp_path):
    trained.save(tmp_path / "teacher")
    before = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    with torch.no_grad():
        trained.backbone.blocks[0][0].weight += 1
    trained.save(tmp_path / "teacher")
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == before


def test_an_interrupted_save_leaves_nothing(trained, tmp_path, monkeypatch):
    def interrupted(model, folder, **options):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ssdd_hub.teacher.save_for_hf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(tmp_path / "teacher")
    assert os.listdir(tmp_path) == []


# Loading


def test_a_teacher_is_built_by_name_with_what_timm_states_of_it():
    teacher = build_teacher("test_vit", pretrained=False)
    assert teacher.pixel_space == PixelSpace((0.5,) * 3, (0.5,) * 3)
    assert (teacher.input_size, teacher.name, teacher.license) == (160, "test_vit", "apache-2.0")
    assert build_teacher("ssdd_resnet10", pretrained=False, channels=(4, 4, 4, 12)).feature_dim == 12


def test_a_module_is_a_teacher():
    module = timm.create_model("test_resnet", num_classes=10)
    teacher = build_teacher(module)
    assert teacher.backbone is module and teacher.name == "ResNet"
    assert teacher.feature_dim == module.head_hidden_size
    assert teacher.pixel_space.mean == module.pretrained_cfg["mean"]


def test_a_module_without_timms_contract_is_refused():
    message = "a teacher needs timm's forward_features and forward_head; Sequential has no forward_features"
    with pytest.raises(InputError, match=message):
        build_teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_9000", "teacher backbone 'resnet_9000' .* cannot be built"),
        ("owner/name", "cannot be built.*hf-hub:OWNER/NAME"),
        ("local-dir:/no/such/folder", "cannot be built.*local-dir:FOLDER with config.json and model.safetensors"),
    ],
)
def test_a_backbone_that_is_nowhere_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        build_teacher(name)


def test_an_argument_that_the_model_does_not_take_is_refused():
    with pytest.raises(InputError, match="colour"):
        build_teacher("test_resnet", pretrained=False, colour=3)


def test_stored_weights_are_read_only_when_they_are_asked_for():
    message = "teacher.backbone 'local-dir:a' names stored weights, so pass --teacher.pretrained true as well"
    with pytest.raises(SettingsError, match=message):
        TeacherSettings(backbone="local-dir:a")
    assert TeacherSettings(backbone="local-dir:a", pretrained=True).pretrained


def test_what_other_settings_decide_is_no_model_argument():
    message = "teacher.model_args must leave out pretrained, num_classes, which other settings decide"
    with pytest.raises(SettingsError, match=message):
        TeacherSettings(model_args={"num_classes": 3, "pretrained": True, "channels": [4]})


# Folders of strangers


class Attack:
    """Unpickles by running a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("as_tensors", [True, False], ids=["torch.save", "plain pickle"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_folder_is_not_unpickled(trained, tmp_path, name, as_tensors):
    folder, mark = tmp_path / "teacher", tmp_path / "attacked"
    trained.save(folder)
    (folder / "model.safetensors").unlink()
    attack = {"state_dict": Attack(mark)}
    if as_tensors:
        torch.save(attack, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(attack))
    with pytest.raises(InputError, match="cannot be built"):
        build_teacher(f"local-dir:{folder}")
    assert not mark.exists()
    with open(folder / name, "rb") as file:
        torch.load(file, weights_only=False) if as_tensors else pickle.load(file)
    assert mark.exists(), "the attack of this test would not have worked anyway"


def test_weights_in_a_harmless_pickle_are_read(trained, tmp_path):
    folder = tmp_path / "teacher"
    trained.save(folder)
    (folder / "model.safetensors").unlink()
    torch.save(trained.backbone.state_dict(), folder / "pytorch_model.bin")
    assert build_teacher(f"local-dir:{folder}").weights_sha256() == trained.weights_sha256()


def test_weights_of_another_network_are_refused(trained, tmp_path):
    folder = tmp_path / "teacher"
    trained.save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["widths"] = [4, 9]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="(?s)cannot be built.*size mismatch"):
        build_teacher(f"local-dir:{folder}")


def test_only_models_of_one_size_are_told_the_size():
    assert input_args("test_vit", 1, 32) == {"in_chans": 1, "img_size": 32}
    assert input_args("test_resnet", 3, 32) == {"in_chans": 3}
