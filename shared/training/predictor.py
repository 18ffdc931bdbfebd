"""An artifact at work: probabilities or features of images, for programs in Python.

probabilities, classes = Predictor("runs/photos/distill-10pct-seed0")(["a.jpg", "b.jpg"])
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from shared.config.sections import Data
from shared.data.batches import normalize, plain_batches, shown_photo
from shared.data.images import USUAL, Decoding, ImageSet, decode_image, rgb_pixels, why_unreadable
from shared.networks.build import load_classifier, load_contrastive
from shared.networks.encoders import fold_batch_norm
from shared.networks.heads import Classifier
from shared.runtime.artifacts import read_meta
from shared.runtime.errors import UserError
from shared.runtime.media import printable
from shared.training.evaluate import require_usable

Photo = str | os.PathLike[str] | Image.Image | np.ndarray


class Probabilities(NamedTuple):
    """Probabilities (N, C) float32, and the names of the C classes."""

    probabilities: np.ndarray
    classes: tuple[str, ...]


class Outputs(NamedTuple):
    """What a network makes of a batch.

    Attributes:
        positions: (b,) int64 of the images that could be read.
        logits: (b, C) float32 on the CPU; None of an encoder.
        features: (b, F) float32 on the CPU; None where none were asked for.
    """

    positions: np.ndarray
    logits: Tensor | None
    features: Tensor | None


class Predictor:
    """A classifier, or an encoder, that sees images as evaluation shows them.

    That is their central part at the network's size, normalised as in training.

    Args:
        folder: the artifact.
        layer: of the features that `features` and `over` give. 0: the encoder's output; k: what k
            layers of the projection head make of it.
        decoding: what is read of unusual files.
        batch_size: images at once.
        workers: processes that decode the images of `over`.
        device: where the network computes; None: the first GPU that torch calls cuda, or the CPU.

    Raises:
        UserError: there is no such artifact, or it has no such layer.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        layer: int | None = None,
        *,
        decoding: Decoding = USUAL,
        batch_size: int = 64,
        workers: int = Data.workers,
        device: torch.device | str | None = None,
    ) -> None:
        self.path = path = Path(folder)
        self.decoding, self.batch_size, self.layer = decoding, batch_size, layer
        self.classes: tuple[str, ...] = ()
        if read_meta(path)["kind"] == "encoder":
            contrastive, self.meta = load_contrastive(path)
            model, head = contrastive, contrastive.head.layers
        else:
            model, meta = load_classifier(path)
            self.meta, head, self.classes = meta, model.layers, tuple(meta["classes"])
        widths = (cast(Any, part).dense.out_features for part in head)
        self.widths = [cast(int, model.encoder.head_hidden_size), *widths]
        if layer is not None and not 0 <= layer <= len(head):
            raise UserError(
                f"{printable(path)} has the layers 0 (the encoder's output) to {len(head)}, and no"
                f" layer {layer}"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model.eval().requires_grad_(False).to(self.device)
        # images in the layout in which CPUs convolve faster: a quarter less time at 32 pixels
        self._encoder = fold_batch_norm(model.encoder).to(memory_format=torch.channels_last)
        self._head = list(head)
        self._linear = model.linear if isinstance(model, Classifier) else None
        mean, std = (cast(tuple[float, float, float], tuple(self.meta[key])) for key in _SCALE)
        antialias, size = self.meta.get("antialias", False), self.meta["image_size"]
        self.data = Data(image_size=size, antialias=antialias, mean=mean, std=std, workers=workers)

    def __call__(self, images: Photo | Iterable[Photo]) -> Probabilities:
        """Probabilities of images, which are decoded in this process.

        Args:
            images: paths, images of Pillow, or uint8 arrays (H, W), (H, W, 3) or (H, W, 4); or one
                of these.

        Raises:
            UserError: an image cannot be read, or the artifact is an encoder.
        """
        if not self.classes:
            raise UserError("an encoder knows no classes; take its features, or give a classifier")
        rows = [cast(Tensor, logits).softmax(1) for _, logits, _ in self._here(images)]
        empty = torch.zeros(0, len(self.classes))
        return Probabilities(torch.cat([*rows, empty]).numpy(), self.classes)

    def features(self, images: Photo | Iterable[Photo]) -> np.ndarray:
        """Features (N, F) float32 at ``layer`` of images, as `__call__` takes them."""
        if self.layer is None:
            raise UserError("which features? name their layer: Predictor(folder, layer=0)")
        rows = [cast(Tensor, features) for _, _, features in self._here(images)]
        return (
            torch.cat(rows).numpy() if rows else np.zeros((0, self.widths[self.layer]), np.float32)
        )

    def over(self, images: ImageSet, ids: np.ndarray) -> Iterator[Outputs]:
        """Outputs of the images at these positions, batch by batch; workers decode them.

        Raises:
            UserError: an image cannot be read. Where the set says skip, it is left out.
        """
        workers = self.data.workers if len(ids) > self.batch_size else 0  # one makes a whole batch
        data = replace(self.data, workers=workers)
        batches = plain_batches(images, ids, data, self.batch_size, self.device, count=False)
        with _room_for(workers):
            for batch, positions in batches:
                if len(batch):
                    yield self.outputs(batch, positions.numpy())

    @torch.inference_mode()
    def outputs(self, batch: Tensor, positions: np.ndarray) -> Outputs:
        """Outputs of a normalised batch (b, 3, S, S).

        Raises:
            UserError: nothing can be computed with them.
        """
        x = features = self._encoder(batch.contiguous(memory_format=torch.channels_last))
        for number, layer in enumerate(self._head, start=1):
            x = layer(x)
            features = x if number == self.layer else features
        logits = None if self._linear is None else self._linear(x).float().cpu()
        wanted = None if self.layer is None else features.float().cpu()
        for rows in (logits, wanted):
            if rows is not None:
                require_usable(rows.numpy(), f"of {printable(self.path)}")
        return Outputs(positions, logits, wanted)

    def _here(self, images: Photo | Iterable[Photo]) -> Iterator[Outputs]:
        photos = _as_list(images)
        for start in range(0, len(photos), self.batch_size):
            chunk = photos[start : start + self.batch_size]
            shown = [shown_photo(_pixels(photo, self.decoding), self.data) for photo in chunk]
            batch = normalize(torch.stack(shown).to(self.device), self.data)
            yield self.outputs(batch, np.arange(start, start + len(chunk)))


_SCALE = ("mean", "std")


@contextmanager
def _room_for(workers: int) -> Iterator[None]:
    """Let torch use half of the processors while workers decode on all of them.

    Its threads wait for one another. Where each of them has to wait for a processor too, a small
    network takes several times as long.
    """
    before = torch.get_num_threads()
    if workers:
        torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) // 2)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_list(images: Photo | Iterable[Photo]) -> Sequence[Photo]:
    """One image becomes a list of one; an array (N, H, W, C) is N images."""
    single = isinstance(images, str | os.PathLike | Image.Image)
    if single or (isinstance(images, np.ndarray) and images.ndim in (2, 3)):
        return [cast(Photo, images)]
    return list(cast(Iterable[Photo], images))


def _pixels(image: Any, decoding: Decoding) -> Tensor:
    """An image of any kind as uint8 (3, H, W)."""
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        if os.path.isdir(path):
            raise UserError(f"cannot read {printable(path)}: a folder; give the files in it")
        try:
            if not os.path.isfile(path):  # to open a FIFO would wait for ever
                raise FileNotFoundError("no such file")
            return decode_image(path, decoding)
        except Exception as error:  # each decoder has its own
            raise UserError(f"cannot read {printable(path)}: {why_unreadable(error)}") from error
    if isinstance(image, Image.Image):
        return rgb_pixels(ImageOps.exif_transpose(image))
    array = np.asarray(image)
    channels = array.shape[2:] if array.ndim == 3 else ()
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in ((), (3,), (4,)):
        what = f"an array of shape {array.shape} and type {array.dtype}"
        raise UserError(
            f"{what if array.ndim else type(image).__name__} is no image; give a path, an image of"
            " Pillow, or an array of uint8 (H, W), (H, W, 3) or (H, W, 4)"
        )
    return rgb_pixels(Image.fromarray(array))
