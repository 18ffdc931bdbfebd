"""Batches as a function of (seed, stage, step).

``Batches`` computes which images form the *global* batch of a step and how each is augmented, and
every process takes its rows. So a run resumes at any step without loader state, and two processes
with 128 images see what one with 256 sees.

Images in memory become views in batch on the device. Others are decoded by workers, each once for
all its views, cropped there and sent on as uint8. Their colours and blur work on the batch where
the device is a GPU; on CPU the workers do that too, as one photo at a time fits into the cache.
"""

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from shared.config.schema import Augmentation, Data
from shared.data import augment, image_ops
from shared.data.augment import Draws
from shared.data.images import ImageSet
from shared.runtime.errors import UserError
from shared.runtime.randomness import generator

T = TypeVar("T")


def positions(seed: int, stage: str, step: int, batch_size: int, n: int) -> np.ndarray:
    """Which of n images form the global batch of ``step``: pass after pass, each in its own order.

    Returns:
        (batch_size,) int64; a batch may reach over the end of a pass, as the reference's does.
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.concatenate(
        [
            _order(seed, stage, int(number), n)[place[place // n == number] % n]
            for number in np.unique(place // n)
        ]
    )


@lru_cache(maxsize=4)
def _order(seed: int, stage: str, number: int, n: int) -> np.ndarray:
    return generator(seed, stage, "order", number).permutation(n)


@lru_cache(maxsize=4)
def _draws(policy: Augmentation, B: int, *key: str | int) -> Draws:
    """What was drawn for the global batch of B images: kept, as a worker takes it row by row."""
    return augment.draw(policy, generator(*key), B)


class Batch(NamedTuple):
    """One process's part of a batch.

    Attributes:
        images: (V * b, 3, S, S) float32, all first views, then all second ones.
        ids: (b,) int64 positions in the image set, on the CPU.
        clean: (b, 3, S, S) float32, the same images as in evaluation, where asked for.
    """

    images: Tensor
    ids: Tensor
    clean: Tensor | None


@dataclass(frozen=True)
class Parts:
    """A process's part of a batch in smaller ones, made when their turn comes.

    Passing through again makes them again, so the views of the whole batch are never in memory.

    Args:
        make: the part of a number.
        number: of parts.
    """

    make: Callable[[int], Batch]
    number: int

    def __iter__(self) -> Iterator[Batch]:
        return _ahead(self.make, 0, self.number, depth=1)


class Batches:
    """Augmented batches of a stage, each a function of (seed, stage, step).

    Args:
        images: where they come from.
        ids: positions of the images that take part.
        data: image size, normalisation and workers.
        policy: how views are made; None shows the image as in evaluation.
        accelerator: tells which rows are this process's, and on which device they are augmented.
        seed: of order and augmentation.
        stage: name of the stage, so that stages see different draws.
        batch_size: images over all processes.
        views: views per image.
        clean: also give the image as in evaluation.

    Raises:
        UserError: where the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        images: ImageSet,
        ids: np.ndarray,
        data: Data,
        policy: Augmentation | None,
        accelerator: Accelerator,
        *,
        seed: int,
        stage: str,
        batch_size: int,
        views: int = 1,
        clean: bool = False,
    ):
        world = accelerator.num_processes
        if batch_size % world:
            raise UserError(f"batch_size {batch_size} must be a multiple of the {world} processes")
        self.images, self.ids, self.data, self.policy = images, ids, data, policy
        self.seed, self.stage, self.batch_size = seed, stage, batch_size
        self.views, self.clean, self.device = views, clean, accelerator.device
        first = accelerator.process_index * batch_size // world
        self.rows = slice(first, first + batch_size // world)
        self._pixels = None if images.pixels is None else images.pixels.to(self.device)
        self.workers_finish = images.pixels is None and self.device.type == "cpu"
        self.skipped: set[int] = set()  # positions of unreadable images that were met so far

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ..., made ahead of their use in a thread."""
        if self._pixels is not None:
            return _ahead(lambda step: self._finish(step, *self._crop_in_memory(step)), start, stop)
        # The workers are forked here, in the caller's thread: forked in the pool's, each would at
        # its end wait for the very thread it runs in, and fail.
        decoded = self.crops(start, stop)
        return _ahead(
            lambda step: self._finish(step, *self._counted(step, *next(decoded))), start, stop
        )

    def steps_in_parts(self, start: int, stop: int, number: int) -> Iterator[Parts]:
        """The same batches, each in a ``number`` of parts; decoded images wait as uint8.

        Part i holds the rows i, i + number, i + 2 number, ... of the global batch. So it is the
        same part however many processes share it, and ``torch.stack(parts, 1).flatten(0, 1)`` of
        what was computed of them is in the order of the whole batch.

        Raises:
            UserError: where a part cannot be divided among the processes.
        """
        first, stop_row = self.rows.start, self.rows.stop
        if (stop_row - first) % number:
            raise UserError(
                f"micro_batch {self.batch_size // number} must be a multiple of the"
                f" {self.batch_size // (stop_row - first)} processes"
            )
        parts = [slice(first + i, stop_row, number) for i in range(number)]
        if self._pixels is not None:

            def make(step: int, i: int) -> Batch:
                return self._finish(step, *self._crop_in_memory(step, parts[i]), parts[i])

            return (Parts(partial(make, step), number) for step in range(start, stop))

        decoded = self.crops(start, stop, parts)

        def load(step: int) -> Parts:
            loaded: list[tuple[Tensor, list[Tensor]]] = []
            for rows in parts:
                ids, crops = next(decoded)
                loaded.append(self._counted(step, ids, crops, rows))

            def make(i: int) -> Batch:
                return self._finish(step, *loaded[i], parts[i])

            return Parts(make, number)

        return _ahead(load, start, stop, depth=1)

    def crops(
        self, start: int, stop: int, parts: list[slice] | None = None
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """What workers make of each batch, or part: (b,) positions, (b, 3, S, S) uint8 per view."""
        return _from_workers(iter(self._loader(start, stop, parts or [self.rows])))

    def chosen(self, step: int, rows: slice | None = None) -> np.ndarray:
        """(b,) positions of this process's images in the batch of ``step``, or of those rows."""
        place = positions(self.seed, self.stage, step, self.batch_size, len(self.ids))
        return self.ids[place[rows or self.rows]]

    def _crop_in_memory(self, step: int, rows: slice | None = None) -> tuple[Tensor, list[Tensor]]:
        assert self._pixels is not None
        ids = torch.from_numpy(self.chosen(step, rows))
        pixels = self._pixels[ids.to(self.device)]  # (b, 3, H, W) uint8
        crops = []
        for view in range(self.views if self.policy else 0):
            assert self.policy is not None
            rng = generator(self.seed, self.stage, "crop", step, view)
            H, W = pixels.shape[-2:]
            sides = np.full(self.batch_size, H), np.full(self.batch_size, W)
            boxes = augment.draw_boxes(self.policy, rng, *sides)[rows or self.rows]
            crops.append(
                image_ops.crop_resize(pixels, boxes, self.data.image_size, self.policy.antialias)
            )
        if self.clean or not self.policy:
            crops.append(image_ops.center_crop(pixels, self.data.image_size))
        return ids, crops

    def _loader(self, start: int, stop: int, parts: list[slice]) -> DataLoader:
        def tasks() -> Iterator[list[tuple[int, int, int]]]:
            for step in range(start, stop):
                for rows in parts:
                    places = range(self.batch_size)[rows]
                    chosen = self.chosen(step, rows).tolist()
                    yield [(step, *task) for task in zip(places, chosen, strict=True)]

        return DataLoader(
            _DecodeAndCrop(self),
            batch_sampler=tasks(),  # type: ignore[arg-type]  # any iterable of lists will do
            num_workers=_workers(self.data),
            pin_memory=self.device.type == "cuda",
        )

    def _counted(
        self, step: int, ids: Tensor, crops: list[Tensor], rows: slice | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Pass on; say which images were unreadable and replaced, each once."""
        wanted = self.chosen(step, rows)
        for id_ in sorted(set(wanted[wanted != ids.numpy()].tolist()) - self.skipped):
            self.skipped.add(id_)
            print(
                f"{self.stage}: skipped {len(self.skipped)} unreadable of {len(self.ids)} images,"
                f" the last is {self.images.names[id_]}",
                flush=True,
            )
        return ids, crops

    def _finish(
        self, step: int, ids: Tensor, crops: list[Tensor], rows: slice | None = None
    ) -> Batch:
        """Flip, colour and blur on the device, where no worker has, and normalise."""
        views = [crop.to(self.device, non_blocking=True) for crop in crops]
        if self.policy and not self.workers_finish:
            for view in range(self.views):
                views[view] = self.look(views[view], step, view, rows or self.rows)
        clean = normalize(views.pop(), self.data) if self.clean else None
        return Batch(normalize(torch.cat(views), self.data), ids, clean)

    def crop_photo(self, image: Tensor, box: Tensor) -> Tensor:
        """One view's part of an image, (1, 3, S, S), float or uint8."""
        assert self.policy is not None
        if self.policy.antialias:
            return image_ops.crop_resize_photo(image, box, self.data.image_size)
        return image_ops.crop_resize(image, box, self.data.image_size)

    def look(self, crops: Tensor, step: int, view: int, rows: slice) -> Tensor:
        """Flip, colour and blur the crops of these rows of the global batch."""
        assert self.policy is not None
        key = (self.seed, self.stage, "look", step, view)
        return augment.apply(self.policy, crops, _draws(self.policy, self.batch_size, *key)[rows])


class _DecodeAndCrop(torch.utils.data.Dataset):
    """In a worker: decode one image and make its views; what a (step, place, id) task asks for."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, task: tuple[int, int, int]) -> tuple[Tensor, list[Tensor]]:
        step, place, id_ = task
        b = self.batches
        id_, image = _readable(b.images, b.ids, id_)
        image, crops = image[None], []  # (1, 3, H, W)
        if b.policy:
            rng = generator(b.seed, b.stage, "crop", step, place)
            sides = (np.full(b.views, side) for side in image.shape[2:])
            boxes = augment.draw_boxes(b.policy, rng, *sides).split(1)
            crops = [b.crop_photo(image, box) for box in boxes]
            if b.workers_finish:
                row = slice(place, place + 1)
                crops = [b.look(crop, step, view, row) for view, crop in enumerate(crops)]
        if b.clean or not b.policy:
            crops.append(image_ops.center_crop(image, b.data.image_size))
        # uint8 again: a quarter of the bytes between processes and to the device
        return torch.tensor(id_), [_to_uint8(crop[0]) for crop in crops]


def _readable(images: ImageSet, ids: np.ndarray, id_: int) -> tuple[int, Tensor]:
    """The image, or with ``on_error=skip`` the next one that can be read, and its position."""
    for _ in range(len(ids)):
        try:
            return id_, images.decode(id_)
        except UserError:
            if images.on_error == "stop":
                raise
            id_ = int(ids[(np.flatnonzero(ids == id_)[0] + 1) % len(ids)])
    raise UserError(f"none of the {len(ids)} images can be read")


def _workers(data: Data) -> int:
    """As many as are asked for, but not more than there are processors."""
    return min(data.workers, os.cpu_count() or 1)


def _to_uint8(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    half = images.new_tensor(0.5)  # rounds; 0.5 + 255 x in one pass
    return torch.add(half, images, alpha=255).clamp_(0, 255).to(torch.uint8)


def normalize(images: Tensor, data: Data) -> Tensor:
    """Subtract ``data.mean`` and divide by ``data.std`` per channel; (B, 3, S, S) float32."""
    images = images if images.is_floating_point() else images.float().div_(255)
    if data.mean == (0, 0, 0) and data.std == (1, 1, 1):
        return images
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    return (images - mean) / std


def _ahead(make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[T]:
    """``make(start)``, ``make(start + 1)``, ... made in one thread, up to ``depth`` in advance."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        for step in range(start, stop):
            pending.append(pool.submit(make, step))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _from_workers(loaded: Iterator[Any]) -> Iterator[Any]:
    """Pass on; an error in a worker arrives with the worker's traceback in front, which we drop."""
    try:
        yield from loaded
    except UserError as error:
        traceback.clear_frames(error.__traceback__)
        del loaded  # the frames of both errors would keep the workers alive
        raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]) from None


class _Decode(torch.utils.data.Dataset):
    """In a worker: decode one image as evaluation shows it; position -1 for one that is skipped."""

    def __init__(self, images: ImageSet, size: int):
        self.images, self.size = images, size

    def __getitem__(self, id_: int) -> tuple[int, Tensor]:
        try:
            image = self.images.decode(id_)
        except UserError:
            if self.images.on_error == "stop":
                raise
            return -1, torch.zeros(3, self.size, self.size, dtype=torch.uint8)
        return id_, _to_uint8(image_ops.center_crop(image[None], self.size)[0])


def plain_batches(
    images: ImageSet, ids: np.ndarray, data: Data, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once and in order, as in evaluation: (b, 3, S, S) float32 and positions (b,).

    Unreadable images are left out where ``on_error`` is skip, with one line that counts them.
    """
    chunks = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    if images.pixels is not None:
        for chunk in chunks:
            pixels = images.pixels[chunk].to(device)
            yield (
                normalize(image_ops.center_crop(pixels, data.image_size), data),
                torch.from_numpy(chunk),
            )
        return
    loader = DataLoader(
        _Decode(images, data.image_size),
        batch_sampler=[chunk.tolist() for chunk in chunks],  # type: ignore[arg-type]
        num_workers=_workers(data),
    )
    seen = 0
    for positions_, pixels in _from_workers(iter(loader)):
        there = positions_ >= 0
        seen += int(there.sum())
        yield normalize(pixels[there].to(device), data), positions_[there]
    if seen < len(ids):
        print(f"left out {len(ids) - seen} unreadable of {len(ids)} images", flush=True)
