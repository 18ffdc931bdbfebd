"""Patches: directions and their opposites, colours, aperture, turns, and that it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.pretext import Patches as Options
from shared.config.schema import Config
from shared.config.sections import Data, Model, Pretrain
from shared.data.batches import Batch, denormalize, normalize
from shared.data.image_ops import grayscale
from shared.networks.build import build_contrastive, network_meta
from shared.pretext.patches import DIRECTIONS, MIDDLE, Patches, blur_colors, within
from shared.pretext.tiles import Grid
from shared.runtime.errors import UserError
from tests.support.pretext import gratings, learn

SIZE = 36


def task(encoder: str = "simclr_resnet8_1x_sk0", size: int = SIZE, **options) -> Patches:
    config = Config(
        data=Data(image_size=size),
        model=Model(encoder=encoder),
        pretrain=Pretrain(task="patches"),
        patches=Options(**{"colors": "all", "head_width": 16, **options}),
    )
    return Patches(config, Accelerator(cpu=True))


def batch(made: Patches, b: int = 5) -> Batch:
    images = torch.rand(b, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(b), None, made.draw(np.random.default_rng(0), b))


def test_each_direction_once_for_each_image_and_its_opposite_is_7_minus_it():
    made = task()
    (classes,) = made.targets(batch(made))
    assert torch.equal(classes.view(8, 5), torch.arange(8)[:, None].expand(8, 5))
    for direction, (y, x) in enumerate(DIRECTIONS):
        assert DIRECTIONS[7 - direction] == (-y, -x)
        middle, neighbour = made.groups[direction].tolist()
        assert middle == MIDDLE
        assert (neighbour // 3 - 1, neighbour % 3 - 1) == (y, x)


def test_a_network_that_knows_nothing_is_at_chance():
    for turns, number in ((False, 8), (True, 32)):
        made = task(turns=turns)
        answer = made.loss((torch.zeros(40, number),), made.targets(batch(made)))
        assert answer.loss.item() == pytest.approx(math.log(number)) == made.chance
        assert answer.metrics()["top1_of_chance"] == 1 / number


def test_one_channel_is_kept_and_the_others_are_blank():
    made = task(colors="one")
    shown = batch(made)
    (tiles,) = made.inputs(shown)
    kept = tiles.flatten(2).std(2) > 1e-4  # (45, 3)
    assert torch.equal(kept.nonzero()[:, 1], shown.drawn[2].T.flatten())
    assert len(shown.drawn[2].unique()) == 3
    (whole,) = task().inputs(shown)
    assert torch.equal(tiles[kept], whole[kept])


def test_blur_keeps_the_luma_and_smooths_what_is_left():
    """Also of normalised images; grey images stay as they are."""
    data = Data(mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.25))
    pixels = torch.rand(4, 3, 20, 20)
    blurred = denormalize(blur_colors(normalize(pixels, data), data), data)
    assert torch.allclose(grayscale(blurred), grayscale(pixels), rtol=0, atol=2e-4)
    before, after = (x - grayscale(x) for x in (pixels, blurred))
    assert after.std() < 0.2 * before.std()
    assert torch.allclose(after[:, :, 10, 10], before[:, :, 4:17, 4:17].mean((2, 3)), atol=1e-3)
    gray = torch.rand(2, 1, 7, 7).expand(-1, 3, -1, -1)
    assert torch.allclose(blur_colors(gray, Data()), gray, atol=1e-3)


def guess_by_fringes(made: Patches) -> float:
    """Accuracy of one who looks only where red lies beside green, which grows away from the middle.

    The images are smooth noise through a lens whose red is 8% larger than its green.
    """
    b, size = 40, made.config.data.image_size
    noise = torch.rand(b, 1, size + 4, size + 4, generator=torch.Generator().manual_seed(0))
    plain = F.avg_pool2d(noise, 5, 1)
    larger = torch.eye(2, 3).expand(b, 2, 3) / 1.08
    grid = F.affine_grid(larger, [b, 1, size, size], align_corners=False)
    red = F.grid_sample(plain, grid, align_corners=False)
    images = torch.cat([red, plain, plain], 1)
    shown = Batch(images, torch.arange(b), None, made.draw(np.random.default_rng(0), b))
    (tiles,), (classes,) = made.inputs(shown), made.targets(shown)
    tiles = tiles.unflatten(0, (9, b))[made.groups[:, 1]].flatten(0, 1)  # (8b, 3, T, T)
    red, green = (tiles[:, c] - tiles[:, c].mean((1, 2), keepdim=True) for c in (0, 1))
    way = 2  # pixels that red is off, about, in a tile beside the middle
    inner = green[:, way:-way, way:-way]
    fits = []
    for y, x in DIRECTIONS:
        moved = red.roll((-way * y, -way * x), (1, 2))[:, way:-way, way:-way]
        fits.append((moved * inner).sum((1, 2)))
    return (torch.stack(fits).argmax(0) == classes).float().mean().item()


def test_fringes_of_a_lens_tell_the_direction_unless_colours_are_dropped():
    """Blurred colours leave a trace of them: 0.23 here, where chance is 0.125."""
    assert guess_by_fringes(task(size=96)) > 0.9
    # of 320 questions: standard deviation 0.018
    assert guess_by_fringes(task(size=96, colors="one")) == pytest.approx(1 / 8, abs=0.06)
    assert guess_by_fringes(task(size=96, colors="blur")) < 0.3


def test_the_aperture_shows_a_window_of_each_tile_alone():
    assert within(torch.tensor([[1, 0, 2]]), 4)[0].int().tolist() == [
        [0, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
    ]
    made = task(aperture=0.5)
    shown = batch(made, 60)
    y, x, side = shown.drawn[3].unbind(2)
    tile = made.grid.tile
    assert (side.min(), side.max()) == (math.ceil(0.5 * tile), tile)
    assert min(y.min(), x.min()) == 0
    assert max((y + side).max(), (x + side).max()) == tile
    (tiles,), (whole,) = made.inputs(shown), task().inputs(shown)
    seen = within(shown.drawn[3].transpose(0, 1).flatten(0, 1), tile)[:, None].expand_as(tiles)
    assert torch.equal(tiles[seen], whole[seen])
    hidden = torch.where(seen, 0, tiles)
    assert torch.equal(hidden.amax((2, 3)) + hidden.amin((2, 3)), hidden.sum((2, 3)).clamp(0)) or (
        hidden.flatten(2).sort().values.diff().gt(1e-5).sum(2).max() <= 1  # 0 and one value
    )


def test_turned_images_are_cut_after_their_turn_which_is_asked():
    made = task(turns=True, gap=0.0, jitter=0.0)
    shown = batch(made, 12)
    turns = shown.drawn[1]
    assert len(turns.unique()) == 4
    (tiles,), (classes,) = made.inputs(shown), made.targets(shown)
    grid = Grid(SIZE, 3, 0.0, 0.0)
    for i, turn in enumerate(turns.tolist()):
        turned = shown.images[i : i + 1].rot90(turn, (2, 3))
        places = shown.drawn[0][i : i + 1]
        own = tiles.unflatten(0, (9, 12))[:, i]
        expected = grid.cut(turned, places)
        scaled = (own - own.mean((2, 3), keepdim=True)) / own.std((2, 3), keepdim=True)
        expected = (expected - expected.mean((2, 3), keepdim=True)) / expected.std(
            (2, 3), keepdim=True
        )
        assert torch.allclose(scaled, expected, atol=1e-3)
        assert classes.view(8, 12)[:, i].tolist() == [8 * turn + d for d in range(8)]


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("test_vit", "takes images of one size alone"),
        ("mixer_s32_224", "takes images of one size alone"),
        ("test_convnext", "cannot take so small an image"),
    ],
)
def test_encoders_that_take_no_tile_are_refused_before_training(encoder, reason):
    config = Config(
        data=Data(image_size=32), model=Model(encoder), pretrain=Pretrain(task="patches")
    )
    made = Patches(config, Accelerator(cpu=True))
    model = build_contrastive(network_meta(config.model, config.data, 0))
    with pytest.raises(UserError, match=rf"{encoder} {reason}") as error:
        made.network(model)
    assert "\n" not in str(error.value)
    assert "tiles of 7 x 7 pixels" in str(error.value)


@pytest.mark.slow
def test_it_learns(tmp_path):
    line = learn(tmp_path, "patches", "--augment.crop_area=[1,1]", pictures=gratings)
    assert line["patches_top1"] > 0.4  # chance 0.125
