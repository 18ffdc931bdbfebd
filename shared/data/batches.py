"""Batches as a function of (seed, stage, step).

``Batches`` computes which images form the *global* batch of a step and how each is augmented, and
every process takes its rows. So a run resumes at any step without loader state, and three processes
with 85, 85 and 86 images see what one with 256 sees.

Images in memory become views in batch on the device. Workers decode all others, each once for all
its views, crop them and send the crops as uint8. On a GPU, colours and blur are applied to the
batch. On CPU the workers apply them too, because one photo at a time fits into the cache. Either
way a view is made from the same numbers, under the same keys:

    (seed, stage, "order", pass)         order of the images
    (seed, stage, "crop", step, view)    crops of the global batch
    (seed, stage, "look", step, view)    all else that is drawn for it
    (seed, stage, "task", step)          what a pretext task draws for it
    (seed, stage, "companions", step)    other images, of which the second half of the views are
"""

import errno
import os
import re
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader

from shared.config.sections import Augmentation, Data
from shared.data import augment, image_ops, photo_looks
from shared.data.augment import Draws
from shared.data.images import ImageSet
from shared.data.permutation import permuted
from shared.data.pixels import Pixels
from shared.runtime.distributed import rows_of
from shared.runtime.errors import UserError
from shared.runtime.media import say
from shared.runtime.randomness import generator
from shared.runtime.stop import deaths_unnoticed, leave_signals_to_parent, signals_held

T = TypeVar("T")
Draw = Callable[[np.random.Generator, int], tuple[Tensor, ...]]
Companions = Callable[[np.random.Generator, np.ndarray], np.ndarray]
LONGEST_ORDER = 2**24  # images; a pass over more is not stored: this many take 128 MiB


def positions(seed: int, stage: str, step: int, batch_size: int, n: int) -> np.ndarray:
    """Which of n images form the global batch of ``step``; each pass over them has its own order.

    Returns:
        (batch_size,) int64; a batch may span two passes, as in the reference.
    """
    passes, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), n)
    return np.concatenate(
        [
            _ordered(seed, stage, int(number), n, places[passes == number])
            for number in np.unique(passes)
        ]
    )


def _ordered(seed: int, stage: str, number: int, n: int, places: np.ndarray) -> np.ndarray:
    """What stands at these places in the order of a pass."""
    if n > LONGEST_ORDER:
        return permuted(places, n, generator(seed, stage, "order", number))
    return _order(seed, stage, number, n)[places]


@lru_cache(maxsize=4)
def _order(seed: int, stage: str, number: int, n: int) -> np.ndarray:
    return generator(seed, stage, "order", number).permutation(n)


@lru_cache(maxsize=16)
def _draws(augmentation: Augmentation, B: int, *key: str | int) -> Draws:
    """The draws of the global batch of B images; cached, because a worker takes them row by row."""
    return augment.draw(augmentation, generator(*key), B)


@lru_cache(maxsize=16)  # views, of a task that has so many: a worker takes all of an image
def _looks(augmentation: Augmentation, B: int, *key: str | int) -> list[photo_looks.Look]:
    """The same for photos, which are finished one by one."""
    return photo_looks.looks_of(_draws(augmentation, B, *key))


@lru_cache(maxsize=16)
def _crop_numbers(B: int, *key: str | int) -> list[list[float]]:
    """What the crops of the global batch are made from, at the first attempt."""
    return augment.crop_numbers(generator(*key), B)


class Batch(NamedTuple):
    """One process's part of a batch.

    Attributes:
        images: (V * b, 3, S, S) float32, all first views, then all second ones.
        ids: (b,) int64 positions in the image set, on the CPU.
        clean: (b, 3, S, S) float32, the same images as in evaluation; None unless requested.
        drawn: (b, ...) each, what a pretext task drew for these images, on the CPU.
    """

    images: Tensor
    ids: Tensor
    clean: Tensor | None
    drawn: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Parts:
    """A process's part of a batch, divided into smaller parts that are made one after the other.

    A second iteration makes them again. So the views of the whole batch are never all in memory.

    Args:
        make: makes part i.
        rows: for each part, its rows among those of this process; they differ in number by 1 at
            most where processes do not share a part evenly.
        images: of this process, in all parts.
    """

    make: Callable[[int], Batch]
    rows: list[slice]
    images: int

    def __iter__(self) -> Iterator[Batch]:
        return _ahead(self.make, 0, len(self.rows), depth=1)


class Batches:
    """Augmented batches of a stage, each a function of (seed, stage, step).

    Args:
        images: the image set.
        ids: positions of the images that take part.
        data: image size, normalisation and workers.
        augmentation: how views are made; None shows the image as in evaluation.
        accelerator: says which rows are this process's, and on which device they are augmented.
        seed: of order and augmentation.
        stage: name of the stage, so that each stage sees other draws.
        batch_size: images over all processes.
        views: views per image.
        clean: also give the image as in evaluation.
        draw: makes what a pretext task draws, (B, ...) each, for a global batch of B images.
        companions: for the positions (B,) of a global batch other positions (B,), whose images the
            second half of the views are of; unset: all views are of the same images.

    Raises:
        UserError: the batch has fewer images than there are processes.
    """

    def __init__(
        self,
        images: ImageSet,
        ids: np.ndarray,
        data: Data,
        augmentation: Augmentation | None,
        accelerator: Accelerator,
        *,
        seed: int,
        stage: str,
        batch_size: int,
        views: int = 1,
        clean: bool = False,
        draw: Draw | None = None,
        companions: Companions | None = None,
    ):
        self.processes = world = accelerator.num_processes
        if batch_size < world:
            raise UserError(f"batch_size {batch_size} is too small for {world} processes")
        self.images, self.ids, self.data, self.augmentation = images, ids, data, augmentation
        self.seed, self.stage, self.batch_size = seed, stage, batch_size
        self.views, self.clean, self.device = views, clean, accelerator.device
        self.draw, self.companions = draw, companions
        self.rows = rows_of(accelerator.process_index, world, batch_size)
        self._pixels = None if images.pixels is None else _on_device(images.pixels, self.device)
        self._sizes = np.array([copy.shape[1:] for copy in images.shrunk or ()])  # (n, 2)
        decoded = images.pixels is not None or images.shrunk is not None
        self.workers_finish = not decoded and self.device.type == "cpu"
        self.skipped: set[int] = set()  # positions of the unreadable images so far

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches ``start``, ``start + 1``, ..., up to ``stop``; a thread makes them in advance."""
        if crop := self._crop_here():
            return _ahead(lambda step: self._finish(step, *crop(step)), start, stop)
        # The workers are forked here, in the caller's thread. If the pool's thread forked them,
        # each worker would at its end wait for the thread that it runs in, and fail.
        decoded = self.crops(start, stop)
        return _ahead(
            lambda step: self._finish(step, *self._counted(step, *next(decoded))), start, stop
        )

    def steps_in_parts(self, start: int, stop: int, number: int) -> Iterator[Parts]:
        """The same batches, each in ``number`` parts; decoded images are kept as uint8.

        Part i holds the rows i, i + number, i + 2 number, ... of the global batch, however many
        processes share it.

        Raises:
            UserError: a part has fewer images than there are processes.
        """
        if self.batch_size // number < self.processes:  # one would have no row of some part
            raise UserError(
                f"micro_batch {self.batch_size // number} is too small for {self.processes}"
                " processes"
            )
        first, end = self.rows.start, self.rows.stop
        own = [slice((i - first) % number, None, number) for i in range(number)]
        parts = [slice(first + rows.start, end, number) for rows in own]
        if crop := self._crop_here():

            def make(step: int, i: int) -> Batch:
                return self._finish(step, *crop(step, parts[i]), parts[i])

            return (Parts(partial(make, step), own, end - first) for step in range(start, stop))

        decoded = self.crops(start, stop, parts)

        def load(step: int) -> Parts:
            loaded: list[tuple[Tensor, list[Tensor]]] = []
            for rows in parts:
                ids, crops = next(decoded)
                loaded.append(self._counted(step, ids, crops, rows))

            def make(i: int) -> Batch:
                return self._finish(step, *loaded[i], parts[i])

            return Parts(make, own, end - first)

        return _ahead(load, start, stop, depth=1)

    def crops(
        self, start: int, stop: int, parts: list[slice] | None = None
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """What workers make of each batch or part: (b,) positions, (b, 3, S, S) uint8 per view."""
        return _from_workers(self._loader(start, stop, parts or [self.rows]))

    def chosen(self, step: int, rows: slice | None = None) -> np.ndarray:
        """(b,) positions of the images in these rows of the batch, by default this process's."""
        place = positions(self.seed, self.stage, step, self.batch_size, len(self.ids))
        return self.ids[place[rows or self.rows]]

    def sources(self, step: int, rows: slice | None = None) -> list[np.ndarray]:
        """(b,) positions of the images that the views are of: all, or the first and second half."""
        chosen = self.chosen(step, rows)
        if self.companions is None:
            return [chosen]
        rng = generator(self.seed, self.stage, "companions", step)
        others = self.companions(rng, self.chosen(step, slice(None)))
        return [chosen, others[rows or self.rows]]

    def source_of(self, view: int, sources: list[T]) -> T:
        """Of the sources, that of a view."""
        return sources[view * len(sources) // self.views]

    def _crop_here(self) -> Callable[..., tuple[Tensor, list[Tensor]]] | None:
        """What crops decoded images without workers; None where workers have to decode them."""
        if self._pixels is not None:
            return self._crop_in_memory
        return None if self.images.shrunk is None else self._crop_copies

    def _crop_copies(self, step: int, rows: slice | None = None) -> tuple[Tensor, list[Tensor]]:
        """Crops of small copies of different sizes, one by one; as workers make them of photos."""
        assert self.images.shrunk is not None
        sources, rows = self.sources(step, rows), rows or self.rows
        ids, crops = sources[0], []
        copies = [[self.images.shrunk[id_][None] for id_ in source] for source in sources]
        for view in range(self.views if self.augmentation else 0):
            sizes = self._sizes[self.source_of(view, sources)].T
            boxes = self.boxes(step, view, rows, *sizes).split(1)
            of_view = self.source_of(view, copies)  # (1, 3, h, w) uint8 each
            crops.append(torch.cat(list(map(self.crop_photo, of_view, boxes))))
        if self.clean or not self.augmentation:
            clean = [central_photo(copy, self.data) for copy in copies[0]]
            crops.append(torch.cat(clean))
        return torch.from_numpy(ids), crops

    def _crop_in_memory(self, step: int, rows: slice | None = None) -> tuple[Tensor, list[Tensor]]:
        assert self._pixels is not None
        sources = [torch.from_numpy(ids) for ids in self.sources(step, rows)]
        pixels = [self._pixels[image_ops.upload(ids, self.device)] for ids in sources]
        crops = []
        for view in range(self.views if self.augmentation else 0):
            of_view = self.source_of(view, pixels)  # (b, 3, H, W) uint8
            boxes = self.boxes(step, view, rows or self.rows, *of_view.shape[-2:])
            size = self.data.image_size
            crops.append(image_ops.crop_resize(of_view, boxes, size, self.data.antialias))
        if self.clean or not self.augmentation:
            crops.append(central(pixels[0], self.data))
        return sources[0], crops

    def _loader(self, start: int, stop: int, parts: list[slice]) -> DataLoader:
        def tasks() -> Iterator[list[tuple[int, ...]]]:
            for step in range(start, stop):
                for rows in parts:
                    numbers = range(self.batch_size)[rows]
                    ids = (source.tolist() for source in self.sources(step, rows))
                    yield [(step, *task) for task in zip(numbers, *ids, strict=True)]

        return DataLoader(
            _DecodeAndCrop(self),
            batch_sampler=tasks(),  # type: ignore[arg-type]  # any iterable of lists will do
            num_workers=_workers(self.data),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )

    def _counted(
        self, step: int, ids: Tensor, crops: list[Tensor], rows: slice | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the arguments; report unreadable images that were replaced, each once."""
        chosen = self.chosen(step, rows)
        for id_ in sorted(set(chosen[chosen != ids.numpy()].tolist()) - self.skipped):
            self.skipped.add(id_)
            say(
                f"{self.stage}: skipped {len(self.skipped)} unreadable of {len(self.ids)} images,"
                f" the last is {self.images.names[id_]}"
            )
        return ids, crops

    def _finish(
        self, step: int, ids: Tensor, crops: list[Tensor], rows: slice | None = None
    ) -> Batch:
        """Normalise; before that, flip, colour and blur on the device, unless the workers did."""
        views = [crop.to(self.device, non_blocking=True) for crop in crops]
        clean = normalize(views[-1], self.data) if self.clean else None
        # without augmentation what is clean is also the view
        images = torch.cat(views[:-1] if self.clean and self.augmentation else views)
        if self.augmentation and not self.workers_finish:
            images = self.look(images, step, range(self.views), rows or self.rows)
        drawn = self._drawn(step, rows or self.rows)
        return Batch(normalize(images, self.data), ids, clean, drawn)

    def _drawn(self, step: int, rows: slice) -> tuple[Tensor, ...]:
        """What the pretext task draws for these rows of the global batch."""
        if self.draw is None:
            return ()
        rng = generator(self.seed, self.stage, "task", step)
        return tuple(values[rows] for values in self.draw(rng, self.batch_size))

    def boxes(
        self,
        step: int,
        view: int,
        rows: slice,
        heights: int | np.ndarray,
        widths: int | np.ndarray,
    ) -> Tensor:
        """Crops (b, 4) of these rows of the global batch; their images have these sizes (b,)."""
        assert self.augmentation is not None
        numbers = range(self.batch_size)[rows]
        key = (self.seed, self.stage, "crop", step, view)
        if len(numbers) == 1:  # a photo, in a worker
            own = _crop_numbers(self.batch_size, *key)[numbers[0]]
            height, width = (int(np.ravel(side)[0]) for side in (heights, widths))
            if box := augment.place_box(self.augmentation, own, height, width):
                return torch.tensor([box])
        sides = np.broadcast_to(heights, len(numbers)), np.broadcast_to(widths, len(numbers))
        return augment.draw_boxes(self.augmentation, generator(*key), *sides, rows)

    def crop_photo(self, image: Tensor, box: Tensor) -> Tensor:
        """Crop of one image (1, 3, H, W) at the view's size: (1, 3, S, S), float or uint8."""
        if self.data.antialias:
            return image_ops.crop_resize_photo(image, box, self.data.image_size)
        return image_ops.crop_resize(image, box, self.data.image_size)

    def look(self, crops: Tensor, step: int, views: range, rows: slice) -> Tensor:
        """Flip, colour and blur the crops of these rows of the global batch: view after view.

        All views pass at once, which takes half as many operations; but where the images of a batch
        share a blur, each view has its own.
        """
        assert self.augmentation is not None
        draws = [self._draws_of(step, view)[rows] for view in views]
        if self.augmentation.blur > 0 and self.augmentation.blur_sigma_per == "batch":
            parts = zip(crops.chunk(len(views)), draws, strict=True)
            return torch.cat([augment.apply(self.augmentation, *part) for part in parts])
        return augment.apply(self.augmentation, crops, Draws.joined(draws))

    def look_of_photo(self, crop: Tensor, step: int, view: int, rows: slice) -> Tensor:
        """The same of one crop (1, 3, S, S) on the CPU, in less time where it is uint8."""
        assert self.augmentation is not None
        if crop.dtype == torch.uint8 and not augment.warps(self.augmentation):
            key = (self.seed, self.stage, "look", step, view)
            look = _looks(self.augmentation, self.batch_size, *key)[rows.start]
            return photo_looks.look_of_photo(self.augmentation, crop, look)
        return augment.apply(self.augmentation, crop, self._draws_of(step, view)[rows])

    def _draws_of(self, step: int, view: int) -> Draws:
        """What is drawn for a view of the whole batch, except crops."""
        assert self.augmentation is not None
        key = (self.seed, self.stage, "look", step, view)
        return _draws(self.augmentation, self.batch_size, *key)


_copies: WeakValueDictionary[tuple[int, torch.device], Tensor] = WeakValueDictionary()


def _on_device(pixels: Pixels, device: torch.device) -> Pixels | Tensor:
    """The pixels there: one copy for all batches of an image set, while any of them is alive.

    Batches keep their image set alive, so the ``id`` of its pixels means no others meanwhile. On
    the CPU they stay where they are.
    """
    if device.type == "cpu":
        return pixels
    key = (id(pixels), device)
    if (copy := _copies.get(key)) is None:
        copy = torch.empty((len(pixels), *pixels.size), dtype=torch.uint8, device=device)
        first = 0
        for block in pixels.blocks():
            copy[first : first + len(block)] = block.to(device)
            first += len(block)
        _copies[key] = copy
    return copy


class _DecodeAndCrop(torch.utils.data.Dataset):
    """Runs in a worker: decodes an image and makes its views; a task is (step, row, id).

    Where there are companions, a task is (step, row, id, companion).
    """

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, task: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        step, row, *ids = task
        b = self.batches
        readable = [_readable(b.images, b.ids, id_) for id_ in ids]
        images, crops = [image[None] for _, image in readable], []  # (1, 3, H, W)
        if b.augmentation:
            rows = slice(row, row + 1)
            for view in range(b.views):
                image = b.source_of(view, images)
                crop = b.crop_photo(image, b.boxes(step, view, rows, *image.shape[2:]))
                crops.append(b.look_of_photo(crop, step, view, rows) if b.workers_finish else crop)
        if b.clean or not b.augmentation:
            crops.append(central_photo(images[0], b.data))
        # uint8 again: a quarter of the bytes between processes and to the device
        return torch.tensor(readable[0][0]), [_to_uint8(crop[0]) for crop in crops]


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
    """The number that is configured, but no more than there are processors."""
    return min(data.workers, os.cpu_count() or 1)


def _to_uint8(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    half = images.new_tensor(0.5)  # to round; 0.5 + 255 x in one pass
    return image_ops.floor_to_uint8(torch.add(half, images, alpha=255).clamp_(0, 255))


def central(images: Tensor, data: Data) -> Tensor:
    """Images (B, 3, H, W) of one size as evaluation shows them: (B, 3, S, S) float32 in [0, 1]."""
    return image_ops.center_crop(images, data.image_size, antialias=data.antialias)


def central_photo(image: Tensor, data: Data) -> Tensor:
    """The same of one decoded photo (1, 3, H, W) uint8, with the kernel of its training views."""
    return image_ops.center_crop_photo(image, data.image_size, data.antialias)


def normalize(images: Tensor, data: Data) -> Tensor:
    """Subtract ``data.mean`` and divide by ``data.std`` per channel; (B, 3, S, S) float32."""
    if not images.is_floating_point():
        images = image_ops.to_unit(images)
    if data.mean == (0, 0, 0) and data.std == (1, 1, 1):
        return images
    mean_and_std = torch.tensor([data.mean, data.std], dtype=images.dtype)
    mean, std = image_ops.upload(mean_and_std, images.device).view(2, 3, 1, 1)
    return (images - mean) / std


def denormalize(images: Tensor, data: Data) -> Tensor:
    """Undo `normalize`: (B, 3, S, S) float32 in [0, 1] up to rounding."""
    std_and_mean = torch.tensor([data.std, data.mean], dtype=images.dtype)
    std, mean = image_ops.upload(std_and_mean, images.device).view(2, 3, 1, 1)
    return images * std + mean


def _ahead(make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> Iterator[T]:
    """``make(start)``, ``make(start + 1)``, ...; a thread makes up to ``depth`` in advance."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        for step in range(start, stop):
            pending.append(pool.submit(make, step))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# What the system says where it has ended a worker.
_ENDED = re.compile("worker .*(exited unexpectedly|killed by signal)")
# And where it has no room for what workers hand over.
_NO_ROOM_CODES = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EAGAIN}
_NO_ROOM = re.compile("shared memory|too many open files|ancdata|allocate memory|no space", re.I)


def _from_workers(loader: DataLoader) -> Iterator[Any]:
    """What workers make, who start at once; their errors lose the traceback.

    Raises:
        UserError: an image cannot be read, or the system takes the workers away.
    """
    try:
        _require_room_for(loader.num_workers)
        with signals_held(), deaths_unnoticed():
            loaded = iter(loader)
    except OSError as error:
        raise _without_workers(error) from error
    return _without_traceback(loaded)


def _require_room_for(workers: int) -> None:
    """OSError where so many workers have nothing to talk through.

    The loader finds that out too, but as it is half made then, it adds a traceback at its end.
    """
    for queue in [multiprocessing.Queue() for _ in range(workers + 2 * bool(workers))]:
        queue.close()


def _without_traceback(loaded: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from loaded
    except (UserError, OSError, EOFError, RuntimeError, MemoryError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        traceback.clear_frames(error.__traceback__)
        del loaded  # the frames of both errors would keep the workers alive
        raise refusal from None


def _refusal(error: Exception) -> UserError | None:
    """What an error of the workers says to the user; None where it is a defect."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return UserError(text.splitlines()[-1].rpartition("UserError: ")[2])
    # a worker that ends as it hands a batch over breaks the connection
    broken = isinstance(error, ConnectionError | EOFError) and "in DataLoader worker" not in text
    if broken or _ENDED.search(text):
        return UserError(
            "a process that reads images was ended from outside, most often because memory is"
            " short; run the same command again to go on, with fewer --data.workers if it happens"
            " again (with 0 the run itself reads the images)"
        )
    if isinstance(error, OSError):  # one of a worker comes as text alone
        number = re.search(r"\[Errno ([0-9]+)\]", text.rpartition("\n")[2])
        no_room = number is not None and int(number[1]) in _NO_ROOM_CODES
    else:
        no_room = isinstance(error, MemoryError) or _NO_ROOM.search(text) is not None
    return _without_workers(error) if no_room else None


def _without_workers(error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1].partition(". ")[0]
    return UserError(
        f"the processes that read images cannot work here ({reason}); run the same command again"
        " with --data.workers 0, and the run itself reads the images"
    )


class _Decode(torch.utils.data.Dataset):
    """Runs in a worker: decodes one image as evaluation shows it; position -1 means skipped."""

    def __init__(self, images: ImageSet, data: Data):
        self.images, self.data = images, data

    def __getitem__(self, id_: int) -> tuple[int, Tensor]:
        try:
            image = self.images.decode(id_)
        except UserError:
            if self.images.on_error == "stop":
                raise
            size = self.data.image_size
            return -1, torch.zeros(3, size, size, dtype=torch.uint8)
        return id_, shown_photo(image, self.data)


def shown_photo(image: Tensor, data: Data) -> Tensor:
    """What evaluation shows of one decoded photo (3, H, W) uint8: (3, S, S) uint8."""
    return _to_uint8(central_photo(image[None], data)[0])


def plain_batches(
    images: ImageSet,
    ids: np.ndarray,
    data: Data,
    batch_size: int,
    device: torch.device | str,
    count: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once and in order, as in evaluation: (b, 3, S, S) float32 and positions (b,).

    Where ``on_error`` is skip, unreadable images are left out, and one line counts them unless
    ``count`` is False.
    """
    chunks = [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)]
    if images.pixels is not None:
        for chunk in chunks:
            pixels = images.pixels[chunk].to(device)
            yield normalize(central(pixels, data), data), torch.from_numpy(chunk)
        return
    if images.shrunk is not None:
        for chunk in chunks:
            views = [central_photo(images.shrunk[i][None], data) for i in chunk]
            yield normalize(torch.cat(views).to(device), data), torch.from_numpy(chunk)
        return
    loader = DataLoader(
        _Decode(images, data),
        batch_sampler=[chunk.tolist() for chunk in chunks],  # type: ignore[arg-type]
        num_workers=_workers(data),
        worker_init_fn=leave_signals_to_parent,
    )
    seen = 0
    for positions_, pixels in _from_workers(loader):
        readable = positions_ >= 0
        seen += int(readable.sum())
        yield normalize(pixels[readable].to(device), data), positions_[readable]
    if count and seen < len(ids):
        say(f"left out {len(ids) - seen} unreadable of {len(ids)} images")
