"""Colour: what colours has the grey image (Zhang et al. 2016, arXiv 1603.08511)?

The network sees the lightness alone, as a grey image of three equal channels, and tells the colours
of all cells of 4 x 4 pixels: as classes with rare colours weighed up, as numbers, or as histograms
of hue and chroma (Larsson et al. 2016, arXiv 1603.06668). To know which colour a thing has, it has
to know what the thing is.

Classes, their shares and the loss of chance are taken once from a sample of the run's own images,
as evaluation shows them. Chance beside the accuracy and the error is of the batch itself: of the
most frequent class, and of the mean colour.

On purpose other than the originals (richzhang/colorization ``caffe_traininglayers.py``,
gustavla/self-supervision ``colorize_hypercolumn3.py``): one linear layer on the last feature map,
whose answers are interpolated to the cells, takes the place of a network with a map of stride 4 and
of hypercolumns at drawn pixels, so that any encoder will do. A cell has the mean colour of its
pixels. The nearest classes are looked up for a and b rounded to whole numbers.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Config
from shared.data.batches import Batch, denormalize
from shared.data.colour_space import rgb_to_lab
from shared.data.image_ops import upload
from shared.data.images import ImageSet
from shared.networks.heads import ContrastiveModel
from shared.pretext.colour_targets import (
    STRIDE,
    TARGETS,
    Classes,
    Target,
    ab_of_cells,
    distance,
    is_coloured,
)
from shared.pretext.network import PretextModel, map_size_of
from shared.pretext.sample import in_chunks, sample
from shared.pretext.task import Answer, Metrics, Task, Tensors
from shared.runtime.distributed import gather_all, refuse_together
from shared.runtime.errors import UserError

FEWEST = 0.1  # share of coloured images


class Colour(Task):
    """The colours of a grey image."""

    name = "colour"

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator)
        self.cfg, self.data = config.colour, config.data
        self.cells = max(1, config.data.image_size // STRIDE)
        self.target: Target = TARGETS[self.cfg.target](self.cfg, self.cells)
        self.sampled: Tensor | None = None  # of the main process

    @property
    def chance(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of equal probabilities, or of the mean colour, over the sample."""
        return self.target.chance.item()

    @property
    def facts(self) -> str:
        """What is asked of a cell."""
        target = self.target
        if isinstance(target, Classes):
            return f"colour as one of {int(target.used.sum())} classes, for {self.cells}² cells"
        return f"colour as {self.cfg.target}, for {self.cells}² cells"

    @property
    def memory(self) -> Target:
        """Classes, shares, and what chance gives."""
        return self.target

    def require(self, images: ImageSet) -> None:
        """Refuse images most of which are grey, or all in one colour."""
        main = self.accelerator.is_main_process
        refuse_together(lambda: self._look_at(images), main)

    def _look_at(self, images: ImageSet) -> None:
        self.sampled = sample(images, self.data)
        ab = torch.cat([ab_of_cells(pixels, self.cells) for pixels in in_chunks(self.sampled)])
        coloured = is_coloured(ab)
        otherwise = "take another --pretrain.task, as rotation"
        if coloured.float().mean() < FEWEST:
            raise UserError(
                f"pretrain.task=colour needs images with colours, but {int((~coloured).sum()):,} of"
                f" {len(ab):,} that were looked at ({(~coloured).float().mean():.0%}) are grey;"
                f" {otherwise}"
            )
        colours = ab[coloured].transpose(0, 1).flatten(1)  # (2, cells of all)
        if colours.std(1).max() < 1:
            raise UserError(
                "pretrain.task=colour needs images with several colours, but all of the"
                f" {len(ab):,} that were looked at have one and the same; {otherwise}"
            )

    def network(self, model: ContrastiveModel) -> nn.Module:
        """With a linear layer on the feature map."""
        channels, _ = map_size_of(model, self.data.image_size)
        return PretextModel(model, [CellHead(channels, self.target.channels, self.cells)])

    def start(self, model: nn.Module, images: ImageSet) -> None:
        """Take what the main process has learned of its sample."""
        if self.sampled is not None:
            self.target.fit(self.sampled)
        main = self.accelerator.is_main_process
        self.target.load_state_dict(gather_all([self.target.state_dict()] if main else [])[0])
        self.target.to(next(model.parameters()).device)
        self.sampled = None

    def inputs(self, batch: Batch) -> Tensors:
        """The lightness as a grey image, normalised as images are: (b, 3, S, S)."""
        lightness = rgb_to_lab(self._pixels(batch))[:, :1] / 100
        both = upload(torch.tensor([self.data.mean, self.data.std]), batch.images.device)
        mean, std = both.view(2, 1, 3, 1, 1)
        return ((lightness - mean) / std,)

    def targets(self, batch: Batch) -> Tensors:
        """What the target makes of the pixels; their colours (b, 2, g, g) first."""
        return self.target.encode(self._pixels(batch))

    def _pixels(self, batch: Batch) -> Tensor:
        return denormalize(batch.images, self.data).clamp(0, 1)

    def loss(self, outputs: Tensors, targets: Tensors) -> Answer:
        """Of the answers (b, channels, g, g)."""
        answer = outputs[0].float()
        with torch.autocast(answer.device.type, enabled=False):
            loss = self.target.loss(answer, *targets).mean()

        @torch.no_grad()
        def metrics() -> Metrics:
            found, right = self.target.decode(answer), targets[0]
            same = self.target.mean.view(1, 2, 1, 1)
            known: dict[str, Tensor] = {
                "colour_error": self.weight * distance(found, right).mean(),
                "error_of_chance": self.weight * distance(same, right).mean(),
                "colour_chroma": self.weight * found.norm(dim=1).mean(),
                "chroma_of_images": self.weight * right.norm(dim=1).mean(),
            }
            if isinstance(self.target, Classes):
                own, answered = self.target.nearest(right), self.target.scores(answer).argmax(1)
                for name, classes in (
                    ("colour_top1", answered),
                    ("top1_of_chance", self.target.commonest),
                ):
                    known[name] = self.weight * (classes == own).float().mean()
            return known

        return Answer(self.weight * loss, metrics)


class CellHead(nn.Module):
    """A linear layer on the feature map, interpolated to the cells."""

    sees = "map"

    def __init__(self, channels: int, answers: int, cells: int) -> None:
        super().__init__()
        self.linear, self.cells = nn.Conv2d(channels, answers, 1), cells

    def forward(self, features: Tensor) -> Tensor:
        """(b, C, H, W) -> (b, answers, g, g)."""
        answers = self.linear(features)
        if answers.shape[2:] == (self.cells, self.cells):
            return answers
        size = (self.cells, self.cells)
        return F.interpolate(answers, size, mode="bilinear", align_corners=False)
