"""Colour: what the network sees, what is refused, and that it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from shared.config.pretext import Colour as Options
from shared.config.schema import Config
from shared.config.sections import Data, Pretrain
from shared.data.batches import Batch, normalize
from shared.data.colour_space import rgb_to_lab
from shared.pretext.colour import Colour
from shared.runtime.errors import UserError
from stages import pretrain
from tests.support.pretext import colourful, learn, options_of
from tests.support.sources import opened

NORMALISED = Data(image_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))


def task(data: Data = NORMALISED, **options) -> Colour:
    config = Config(data=data, pretrain=Pretrain(task="colour"), colour=Options(**options))
    return Colour(config, Accelerator(cpu=True))


def folder(path, images):
    path.mkdir()
    for i, pixels in enumerate(images):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path / f"{i}.png")
    return opened(path, image_size=16).train


def test_the_network_sees_the_lightness_as_a_grey_image():
    pixels = torch.rand(3, 3, 16, 16)
    batch = Batch(normalize(pixels, NORMALISED), torch.arange(3), None)
    made = task()
    (grey,) = made.inputs(batch)
    shown = grey * torch.tensor(NORMALISED.std).view(3, 1, 1)
    shown = shown + torch.tensor(NORMALISED.mean).view(3, 1, 1)
    assert torch.allclose(shown, rgb_to_lab(pixels)[:, :1].expand_as(shown) / 100, atol=1e-5)
    turned = torch.cat([pixels[:, 1:], pixels[:, :1]], 1)  # other colours
    assert not torch.allclose(made.inputs(batch._replace(images=turned))[0], grey)
    (ab,) = made.targets(batch)
    means = rgb_to_lab(pixels)[:, 1:].unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((3, 5))
    assert torch.allclose(ab, means, atol=1e-3)


def grey_image(i: int) -> np.ndarray:
    return np.repeat(np.random.default_rng(i).integers(0, 256, (16, 16, 1)), 3, axis=2)


@pytest.mark.parametrize("kind", ["grey", "almost", "tinted", "digits"])
def test_images_without_colours_are_refused(kind, tmp_path, capsys):
    """In one line, with what was measured, before anything is trained."""
    if kind == "digits":
        arguments = [a for a in options_of("colour") if not a.startswith("--data.train")]
        assert pretrain.main([*arguments, f"--output={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert "1,000 of 1,000 that were looked at (100%) are grey" in error
        assert error.count("\n") == 1
        return
    images = [grey_image(i) for i in range(20)]
    if kind == "almost":
        images[3] = images[3] * [1, 0, 0]
    if kind == "tinted":
        images = [np.full((16, 16, 3), (200, 120, 60)) for _ in range(20)]
    said = {"grey": r"20 of 20 .* \(100%\) are grey", "almost": r"19 of 20 .* \(95%\) are grey"}
    with pytest.raises(UserError, match=said.get(kind, "have one and the same")) as error:
        task().require(folder(tmp_path / "images", images))
    assert "\n" not in str(error.value)
    assert "--pretrain.task" in str(error.value)


def test_what_is_known_of_the_images_is_kept(tmp_path):
    images = folder(tmp_path / "images", colourful(30).permute(0, 2, 3, 1))
    made, again = task(), task()
    made.require(images)
    made.start(torch.nn.Linear(1, 1), images)
    again.memory.load_state_dict(made.memory.state_dict())
    assert again.chance == made.chance > 1
    assert torch.equal(again.target.weights, made.target.weights)
    assert made.facts == again.facts


@pytest.mark.parametrize(
    ("option", "allowed"),
    [("bin=2", "5 to 50"), ("rebalancing=1.5", "in [0, 1]"), ("window=4", "an odd number")],
)
def test_options_out_of_bounds_are_refused(option, allowed):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"colour.{name} must be") as error:
        dataclasses.replace(Options(), **{name: type(getattr(Options(), name))(float(value))})
    assert allowed in str(error.value)


def test_it_learns(tmp_path):
    line = learn(tmp_path, "colour", "--pretrain.steps=40")
    assert line["colour_error"] < 0.5 * line["error_of_chance"]
    assert line["colour_top1"] > 0.7 > line["top1_of_chance"]
