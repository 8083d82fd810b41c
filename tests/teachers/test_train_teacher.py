import pytest
import timm
import torch

from ssdd_hub.errors import InputError
from ssdd_hub.pixel_space import PixelSpace
from ssdd_hub.runs.folder import RunFolder
from ssdd_hub.teachers.monitor import Watch, WatchSettings
from ssdd_hub.teachers.teacher import TeacherSettings
from ssdd_hub.teachers.training import Pretraining, TeacherTrainingSettings, new_backbone, train_teacher

PROVENANCE = {"source": {"name": "digits"}, "license": "bsd-3-clause", "command": "accelerate launch recipe.py"}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def train(digits, tmp_path, accelerator):
    source, heldout = (bank.subset(range(40)) for bank in digits)

    def train(watched=True, backbone="ssdd_convnet3", **pretrain):
        space = PixelSpace.of(source.pixels)
        small = {"epochs": 1, "batch_size": 16, "workers": 0, "objective_args": {"hidden_dim": 8, "output_dim": 8}}
        return train_teacher(
            TeacherSettings(backbone, model_args={"widths": (4, 6)}),
            TeacherTrainingSettings(**{**small, **pretrain}),
            source,
            space,
            RunFolder(tmp_path / "run", {"seed": 0}),
            seed=0,
            accelerator=accelerator,
            watch=Watch(source, heldout, space, WatchSettings(), 0) if watched else None,
            provenance=PROVENANCE,
        )

    return train


def test_the_teacher_is_trained_saved_loaded_and_recorded(train, digits, tmp_path):
    teacher, folder = train(), tmp_path / "run" / "teacher"
    space = PixelSpace.of(digits[0].pixels[:40])
    # timm keeps mean and std as they are.
    assert teacher.pixel_space == space and teacher.input_size == 16 and not teacher.training
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    pixels = digits[0].pixels[:9] / 255
    with torch.no_grad():
        assert torch.allclose(teacher(pixels), model(space.normalise(pixels)), atol=1e-6, rtol=0)
    fresh = new_backbone("ssdd_convnet3", 1, 16, 0, widths=(4, 6)).state_dict()
    assert not torch.equal(fresh["blocks.0.0.weight"], teacher.backbone.state_dict()["blocks.0.0.weight"])
    text = (folder / "ssdd_hub.json").read_text()
    for fact in ("arXiv", "accelerate launch recipe.py", "peak_memory_gib", '"untrained"', '"knn"'):
        assert fact in text


def test_a_teacher_that_is_there_is_not_trained_again(train, monkeypatch):
    first = train(watched=False).weights_sha256()
    monkeypatch.setattr(Pretraining, "_step", lambda *arguments: pytest.fail("a step was taken"))
    assert train(watched=False).weights_sha256() == first


def test_run_and_trackers_start_only_when_everything_can_be_built(train, tmp_path, accelerator):
    calls = []
    accelerator.init_trackers = lambda name, *_: calls.append((name, (tmp_path / "run" / "config.yaml").exists()))
    for wrong in ({"backbone": "resnet_9000"}, {"objective": "simclr2"}, {"view_args": {"zoom": 2}}):
        with pytest.raises(InputError):
            train(**wrong)
        assert not (tmp_path / "run").exists() and calls == []
    train()
    assert calls == [("ssdd_hub", True)]


def test_a_fresh_backbone_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (new_backbone("ssdd_convnet3", 1, 16, seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again) and not same(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_backbone_is_built_for_the_size_and_the_channels_of_the_images():
    vit = new_backbone("test_vit", 1, 32, seed=0, patch_size=8)
    assert vit.patch_embed.img_size == (32, 32) and vit.patch_embed.proj.in_channels == 1
    # Networks that are not built for one size are not told it.
    assert new_backbone("test_resnet", 1, 32, seed=0).conv1[0].in_channels == 1
