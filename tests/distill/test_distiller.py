import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from reference.contract_cases import B, D, M, batches, make_pairs

from ssdd_hub.distill.distiller import Distiller, DistillerSettings
from ssdd_hub.distill.engine import memory
from ssdd_hub.distill.engine.memory import MicroBatches
from ssdd_hub.distill.krr import Regression
from ssdd_hub.distill.parameterisations import build_parameterisation
from ssdd_hub.distill.pool import PoolSettings, StudentPool
from ssdd_hub.errors import InputError, SettingsError
from ssdd_hub.models.convnet import ConvNet
from ssdd_hub.runs.checkpoints import load_tree, save_tree


def build_distiller(accelerator=None, num_images=M, precision="float64", max_age=3, **settings):
    dtype = getattr(torch, precision)
    pool = StudentPool(
        lambda: ConvNet((4, 5), "batch", 1, 8, D), PoolSettings(size=2, max_age=max_age, warm_up=False), 0, dtype=dtype
    )
    usual = {"steps": 10, "batch_size": B, "lr_images": 1e-2, "lr_targets": 1e-3}
    settings = DistillerSettings(num_images=num_images, precision=precision, **{**usual, **settings})

    def real(step, rank=0, world=1):
        return tuple(part.to(dtype) for part in batches(step, rank, world, settings.batch_size))

    return Distiller(*make_pairs(num_images, 99), pool, real, settings, accelerator or Accelerator(cpu=True))


def run(distiller, steps):
    return [distiller.step()["loss"].item() for _ in range(steps)]


def test_krr_st_on_pixels_is_built_from_its_parts_by_name_too():
    ours = build_distiller()
    parts = {"pool": build_distiller().pool, "batches": batches, "settings": ours.settings}
    pairs = {"images": ours.images.detach(), "targets": ours.targets.detach()}
    theirs = Distiller(**pairs, **parts, accelerator=ours.accelerator)
    again = Distiller(theirs.parameterisation, theirs.method, settings=theirs.settings, accelerator=theirs.accelerator)
    assert run(ours, 3) == run(again, 3)
    assert torch.equal(ours.images, theirs.images)


def test_a_price_of_targets_alone_costs_nothing_where_these_stay():
    distiller, twin = build_distiller(), build_distiller()
    for each, rate in ((distiller, 0.5), (twin, 0.0)):
        given = {"step": 0.0, "target_step": 0.3, "rate": rate, "lr_images": 1e-2, "lr_targets": 1e-3}
        each.parameterisation = build_parameterisation("dct", make_pairs(M, 99), given)
        each._build_optimizer()
        each.method.moves_targets = False
    assert run(distiller, 2) == run(twin, 2)
    assert torch.equal(distiller.images, twin.images)


def test_a_full_memory_is_answered_by_smaller_parts_and_the_step_is_done_again(caplog):
    whole, short = build_distiller(), build_distiller()
    features = short.engine._read

    def fit_three(folded, weights, images):
        if len(images) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return features(folded, weights, images)

    short.engine._read = fit_three
    torch.testing.assert_close(run(whole, 4), run(short, 4), rtol=1e-9, atol=0)
    assert short.parts == MicroBatches(2, recompute=True)
    assert "the memory is full: from here on" in caplog.text


@pytest.mark.parametrize("message", ["CUDA out of memory.", "mat1 and mat2 shapes cannot be multiplied"])
def test_an_error_that_smaller_parts_do_not_avoid_is_raised(message):
    distiller = build_distiller()
    before = distiller.images.detach().clone()

    def fail(folded, weights, images):
        raise RuntimeError(message)

    distiller.engine._read = fail
    with pytest.raises(RuntimeError, match=message):
        distiller.step()
    assert torch.equal(before, distiller.images) and distiller.outer_step == 0


def test_both_learning_rates_decay_linearly_to_their_last_share():
    distiller = build_distiller(steps=4, final_lr=0.2)
    rates = []
    for _ in range(4):
        distiller.step()
        rates.append([group["lr"] for group in distiller.optimizer.param_groups])
    shares = torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=torch.float64)
    expected = shares[:, None] * torch.tensor([[1e-2, 1e-3]], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected)


def test_a_resumed_run_passes_images_as_before_however_much_memory_is_free(tmp_path, monkeypatch):
    stopped, resumed = build_distiller(), build_distiller()
    run(stopped, 2)
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert run(resumed, 2) == run(stopped, 2)
    assert resumed.parts == stopped.parts
    fresh = build_distiller()
    run(fresh, 1)
    assert fresh.parts == MicroBatches(1, recompute=True)


def test_a_checkpoint_of_before_methods_and_parameterisations_is_read():
    unbroken, stopped, resumed = (build_distiller() for _ in range(3))
    losses = run(unbroken, 6)
    run(stopped, 3)
    state = stopped.state_dict()
    before = {
        "outer_step": state["outer_step"],
        **state["parameterisation"],
        "optimizer": state["optimizer"],
        "pool": state["method"]["pool"],
        "parts": state["engine"]["parts"],
    }
    resumed.load_state_dict(before)
    assert run(resumed, 3) == losses[3:]
    assert torch.equal(resumed.images, unbroken.images)


def test_a_checkpoint_of_another_set_is_refused():
    with pytest.raises(InputError, match=r"images \(6, 1, 8, 8\).*this run images \(7, 1, 8, 8\)"):
        build_distiller(num_images=7).load_state_dict(build_distiller().state_dict())


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 8), (6, 1), (20, 4)])
def test_one_image_and_one_real_image_and_more_images_than_the_batch_work(num_images, batch_size):
    distiller = build_distiller(num_images=num_images, batch_size=batch_size)
    assert all(torch.isfinite(torch.tensor(run(distiller, 4))))


@pytest.fixture
def seen(monkeypatch):
    """The types of what the regression is given, and whether products are rounded there."""
    seen = []

    class Spy(Regression):
        def __init__(self, features, targets, ridge, solve, kernel):
            seen.append((features.dtype, targets.dtype, torch.is_autocast_enabled("cpu")))
            super().__init__(features, targets, ridge, solve, kernel)

        def loss(self, features, targets, outer):
            seen.append((features.dtype, targets.dtype, torch.is_autocast_enabled("cpu")))
            return super().loss(features, targets, outer)

    monkeypatch.setattr("ssdd_hub.distill.engine.krr_gradients.Regression", Spy)
    return seen


def test_the_kernel_stays_in_full_precision_under_mixed_precision(seen):
    exact = build_distiller(precision="float32").step()["loss"].item()
    # Accelerate keeps the first precision of a process for good.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        distiller = build_distiller(Accelerator(cpu=True, mixed_precision="bf16"), precision="float32")
        loss = distiller.step()["loss"].item()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    full = (torch.float32, torch.float32, False)
    assert seen == [full] * 4
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.1)


def test_the_kernel_is_built_in_float64_on_request(seen):
    distiller = build_distiller(precision="float32", kernel_precision="float64")
    distiller.step()
    assert [entry[:2] for entry in seen] == [(torch.float64, torch.float64)] * 2
    assert distiller.images.dtype == torch.float32


def test_every_wrong_setting_is_reported():
    with pytest.raises(SettingsError) as raised:
        DistillerSettings(num_images=0, lr_images=-1.0, pixel_space="srgb", precision="float16", final_lr=2.0)
    message = str(raised.value)
    for name in ("num_images", "lr_images", "pixel_space", "precision", "final_lr"):
        assert f"distiller.{name}" in message
    assert len(raised.value.problems) == 5


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 9)
    with pytest.raises(SettingsError, match=r"at least the number of processes \(9\), got 7"):
        build_distiller()


def test_a_step_sees_a_batch_of_the_set_and_moves_nothing_else():
    distiller = build_distiller(set_batch=4)
    list(distiller.warm_up())
    seen = [distiller.method.rows(M, step).tolist() for step in range(20)]
    # A pair that was there twice would leave the kernel singular.
    assert all(len(set(each)) == 4 for each in seen) and {row for each in seen for row in each} == set(range(M))
    rows, before = distiller.method.rows(M, 0), distiller.images.detach().clone()
    expected = distiller.method.loss(distiller.rendered(rows).detached(), 0)
    torch.testing.assert_close(distiller.step()["loss"], expected)
    moved = (distiller.images.detach() != before).flatten(1).any(1)
    assert torch.equal(moved.nonzero().flatten(), rows.sort().values)


def test_a_run_on_batches_of_the_set_resumes_exactly(tmp_path):
    unbroken, stopped, resumed = (build_distiller(set_batch=4) for _ in range(3))
    losses = run(unbroken, 8)
    assert run(stopped, 5) == losses[:5]
    save_tree(tmp_path / "state.safetensors", stopped.state_dict())
    resumed.load_state_dict(load_tree(tmp_path / "state.safetensors"))
    assert run(resumed, 3) == losses[5:]
    assert torch.equal(resumed.images, unbroken.images)


@pytest.mark.parametrize("size", [M, M + 1])
def test_a_batch_of_the_whole_set_is_the_set(size):
    whole, batched = build_distiller(), build_distiller(set_batch=size)
    assert run(whole, 3) == run(batched, 3)
