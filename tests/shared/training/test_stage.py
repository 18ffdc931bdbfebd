"""What the loops call: what may be saved, how a stopped run goes on, which augmentation counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shared.config.schema import Augmentation, Config, Data, Distill, Finetune, Linear, Pretrain
from shared.data.augment import apply, draw
from shared.networks.encoders import create_encoder
from shared.networks.heads import Classifier
from shared.runtime.errors import UserError
from shared.training import stage as training
from shared.training.stage import (
    Keeper,
    augmentation_for,
    read_later,
    require_finite,
    same_command,
    to_device,
    to_inference,
    warnings_for,
)


# -------------------------------------------------------------------------------------- checkpoints
def keeper(saved: list[int], every: int = 2, total: int = 5) -> Keeper:
    folder = SimpleNamespace(
        stage="finetune",
        last_checkpoint=lambda: "state/2.safetensors",
        save_state=lambda step, *rest: saved.append(step),
    )
    accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    return Keeper(folder, every, total, SimpleNamespace(), accelerator, 0.0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_checkpoints_are_saved_when_due():
    saved, model = [], network()
    for step in range(1, 6):
        keeper(saved).after(step, model, torch.optim.SGD(model.parameters(), 0.1))
    assert saved == [2, 4]  # after the last step the artifact itself


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [4, 5])
def test_what_is_not_finite_is_never_saved(name, value, step):
    """Neither as a checkpoint (step 4) nor as the artifact (step 5)."""
    saved, model = [], network()
    model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(
        UserError, match=f"weights are not finite after step {step} of finetune"
    ) as e:
        keeper(saved).after(step, model, torch.optim.SGD(model.parameters(), 0.1))
    assert "last good checkpoint: state/2.safetensors" in str(e.value)
    assert saved == []


# ------------------------------------------------------------------------------------------- force
def test_pretraining_on_what_is_hardly_meant_says_so():
    class Images(list):
        def decode(self, index: int) -> torch.Tensor:
            return torch.zeros(3, self[index], self[index] + 2, dtype=torch.uint8)

    config = Config(data=Data(image_size=8), pretrain=Pretrain(batch_size=128))
    assert warnings_for(config, Images([8] * 128)) == []
    few, large = warnings_for(config, Images([30] * 100))
    assert "a batch of 128 has some of the 100 images more than once" in few
    assert "the first image has 32 x 30 pixels, and the network sees 8 x 8" in large


@pytest.mark.parametrize(
    ("force", "stage", "says"),
    [
        ("", "pretrain", "run the same command"),
        ("pretrain", "finetune", "run the same command, now with --force self-distill,distill,"),
        ("linear", "linear", "run the same command, now without --force,"),
        ("distill", "finetune", "run the same command, now with --force distill,"),
    ],
)
def test_how_a_stopped_run_goes_on(force, stage, says):
    """Without doing again what is done or begun, but all that comes later."""
    assert same_command(Config(force=force), stage) == says


# ------------------------------------------------------------------------------------ augmentation
def test_fine_tuning_and_distillation_crop_and_flip_alone():
    """No colour and no blur (SPEC 10), whatever the recipe says of pretraining's."""
    assert {Finetune().augmentation, Linear().augmentation, Distill().augmentation} == {"crop"}
    recipe = Augmentation(jitter=1.0, grayscale=1.0, blur=1.0, rotate=10, crop_area=(0.3, 1.0))
    ours = augmentation_for(recipe, "crop")
    assert (ours.flip, ours.rotate, ours.crop_area) == (0.5, 10, (0.3, 1.0))
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = augmentation_for(Augmentation(jitter=1.0, grayscale=1.0, blur=1.0), "crop")
    views = apply(still, images, draw(still, np.random.default_rng(0), 64))
    flipped = [torch.equal(view, image.flip(2)) for view, image in zip(views, images, strict=True)]
    same = [torch.equal(view, image) for view, image in zip(views, images, strict=True)]
    assert sum(flipped) + sum(same) == 64
    assert 10 < sum(flipped) < 54
    assert augmentation_for(recipe, "full") == recipe
    assert augmentation_for(recipe, "none") is None


# ------------------------------------------------------------------------------------------ models
def process(precision: str = "no") -> SimpleNamespace:
    return SimpleNamespace(num_processes=1, mixed_precision=precision, device=torch.device("cpu"))


def test_a_loss_that_is_no_number_stops_with_step_and_rate():
    folder = SimpleNamespace(stage="pretrain", last_checkpoint=lambda: "state/2.safetensors")
    loss = torch.tensor(2.0, requires_grad=True)
    require_finite(read_later(loss), 7, 0.1, folder)
    for value in (float("nan"), float("-inf")):
        with pytest.raises(UserError) as error:
            require_finite(read_later(loss * value), 7, 0.1, folder)
        assert f"the loss is {value} at step 7 of pretrain (learning rate 0.1)" in str(error.value)
        assert "last good checkpoint: state/2.safetensors" in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_a_number_does_not_wait_for_what_was_queued_after_it():
    number = torch.rand((), device="cuda", requires_grad=True) * 2
    read, done = read_later(number), torch.cuda.Event()
    torch.cuda._sleep(10**9)
    done.record()
    assert read() == number.detach().cpu().item() or not done.query()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_inference_predicts_as_the_model_does(precision):
    torch.manual_seed(0)
    model = Classifier(create_encoder("simclr_resnet8_1x_sk0", 16), 5)
    model(torch.rand(16, 3, 16, 16))  # batch norm has counted
    torch.nn.init.normal_(model.linear.weight)
    images = torch.rand(4, 3, 16, 16)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model(images)
        fast = to_inference(model, Config(), process(precision))
        got = fast(images)
    assert got.dtype == torch.float32
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    tolerance = 1e-5 if precision == "no" else 0.02 * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_compiling_keeps_the_names_and_needs_a_compiler(monkeypatch):
    model = Classifier(create_encoder("simclr_resnet8_1x_sk0", 16), 5)
    names = list(model.state_dict())
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setenv("CXX", "python")  # is there
    to_device(model, Config(compile=True), process())
    assert compiled == [model.encoder]
    assert list(model.state_dict()) == names
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler, .* no python here"):
        to_device(model, Config(compile=True), process())
    to_device(model.requires_grad_(False), Config(compile=True), process())  # nothing to train
    to_device(model.requires_grad_(True), Config(), process())
    assert compiled == [model.encoder]
