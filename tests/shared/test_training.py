"""What the loops call: what may be saved, how a stopped run goes on, which augmentation counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shared.augment import Augmentation, apply, draw
from shared.config import Config, Distill, Finetune, Linear
from shared.errors import UserError
from shared.training import Keeper, policy, same_command


# -------------------------------------------------------------------------------------- checkpoints
def keeper(saved: list[int], every: int = 2, total: int = 5) -> Keeper:
    folder = SimpleNamespace(
        stage="finetune", last_checkpoint=lambda: "state/2.safetensors",
        save_state=lambda step, *rest: saved.append(step),
    )  # fmt: skip
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
    ours = policy(recipe, "crop")
    assert (ours.flip, ours.rotate, ours.crop_area) == (0.5, 10, (0.3, 1.0))
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = policy(Augmentation(jitter=1.0, grayscale=1.0, blur=1.0), "crop")
    views = apply(still, images, draw(still, np.random.default_rng(0), 64))
    flipped = [torch.equal(view, image.flip(2)) for view, image in zip(views, images, strict=True)]
    same = [torch.equal(view, image) for view, image in zip(views, images, strict=True)]
    assert sum(flipped) + sum(same) == 64
    assert 10 < sum(flipped) < 54
    assert policy(recipe, "full") == recipe
    assert policy(recipe, "none") is None
