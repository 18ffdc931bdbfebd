"""What networks make of many images; how good a classifier is: top-1, likelihood, calibration."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.sections import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet
from shared.runtime.errors import UserError
from shared.runtime.progress import Progress, counted

WITHOUT_TOP5 = 5  # classes, at most, of which it says nothing that the right one is among five

GREATEST = 1e15  # of an output: float32 holds sums of its squares


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 in 0..C-1.

    Returns:
        ``top1``, the share of right predictions in [0, 1]; for more than 5 classes ``top5``, the
        share of images whose class is among the five likeliest; ``nll``, the mean negative log
        likelihood in nats; ``ece``, the expected calibration error in [0, 1], in 15 bins of equal
        width (Guo et al. 2017, section 2).
    """
    return _summary(_answers(logits, targets), targets, logits.shape[1])


def _answers(logits: Tensor, targets: Tensor) -> Tensor:
    """All that the metrics need of (N, C) logits, for a table of many classes would not fit.

    Returns:
        (N, 4) float32: the likeliest class, its probability, whether the target is among the five
        likeliest, the negative log likelihood of the target.
    """
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    confidence = logits.softmax(1).amax(1)
    among_five = (ranked == targets[:, None]).any(1)
    nll = F.cross_entropy(logits, targets, reduction="none")
    columns = [ranked[:, 0].float(), confidence, among_five.float(), nll]
    return torch.stack(columns, dim=1)


def _summary(answers: Tensor, targets: Tensor, classes: int) -> dict[str, float]:
    """The metrics of (N, 4) answers."""
    predictions, confidence, among_five, nll = answers.unbind(1)[:4]
    hit = (predictions == targets).float()
    bins = (confidence * 15).long().clamp_(0, 14)  # also of NaN, which has no bin
    # sum over bins of |right predictions - confidence| / N
    gaps = torch.zeros(15, device=answers.device).index_add_(0, bins, hit - confidence)
    metrics = {"top1": hit.mean().item()}
    if classes > WITHOUT_TOP5:
        metrics["top5"] = among_five.mean().item()
    metrics["nll"] = nll.mean().item()
    metrics["ece"] = (gaps.abs().sum() / len(targets)).item()
    return metrics


@torch.inference_mode()
def over_images(
    function: Callable[[Tensor, int, np.ndarray], Tensor],
    images: ImageSet,
    ids: np.ndarray,
    data: Data,
    accelerator: Accelerator,
    batch_size: int = 256,
    title: str = "images",
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a function to every image as evaluation shows it, divided among the processes.

    Args:
        function: a normalised batch (b, 3, S, S), its number and its positions (b,) -> (b, F).
            Batch k holds the ids k * batch_size and following, however many processes there are:
            random numbers may depend on k.
        images: the image set.
        ids: positions in it, ascending.
        data: image size, normalisation, workers.
        accelerator: of this process.
        batch_size: images per call.
        title: of the progress bar.

    Returns:
        Rows (n, F) float32 and their positions (n,), ascending, on every process. Where
        ``on_error`` is skip, unreadable images are left out.

    Raises:
        UserError: nothing can be computed with an output.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    numbers = range(-(-len(ids) // batch_size))[rank::world]
    mine = [ids[number * batch_size : (number + 1) * batch_size] for number in numbers]
    rows, positions = [], [torch.zeros(0, dtype=torch.int64)]
    own = np.concatenate([*mine, ids[:0]])
    batches = plain_batches(images, own, data, batch_size, accelerator.device)
    with Progress(title, len(own), "images", shown=accelerator.is_main_process) as bar:
        for number, (batch, of_batch) in zip(numbers, batches, strict=True):
            rows.append(function(batch, number, of_batch.numpy()).float())
            positions.append(of_batch)
            bar.update(len(batch))
    if world == 1:
        return torch.cat(rows).cpu().numpy(), torch.cat(positions).numpy()
    if not rows:  # fewer batches than processes: the width is that of one image
        batch, at = next(plain_batches(images, ids[:1], data, 1, accelerator.device))
        rows.append(function(batch, 0, at.numpy()).float()[:0])
    # processes may hold different numbers of images: pad with rows marked -1
    padded = accelerator.pad_across_processes(
        (torch.cat(rows), torch.cat(positions).to(accelerator.device)), dim=0, pad_index=-1
    )
    all_rows, all_positions = (part.cpu().numpy() for part in accelerator.gather(padded))
    order = np.argsort(all_positions)[(all_positions < 0).sum() :]
    return all_rows[order], all_positions[order]


def outputs_of(
    network: Callable[[Tensor], Tensor],
    images: ImageSet,
    ids: np.ndarray,
    data: Data,
    accelerator: Accelerator,
    title: str = "images",
) -> tuple[np.ndarray, np.ndarray]:
    """`over_images` of a network that only answers, in the precision of this run.

    Args:
        network: on its device and in evaluation: (b, 3, S, S) -> (b, F).
        images: as those that follow, of `over_images`.
        ids: positions.
        data: image size, normalisation, workers.
        accelerator: of this process.
        title: of the progress bar.
    """

    def outputs(batch: Tensor, *_: object) -> Tensor:
        with accelerator.autocast():
            return network(batch)

    rows, positions = over_images(outputs, images, ids, data, accelerator, title=title)
    require_usable(rows, "of the network")  # in all processes alike
    return rows, positions


def require_usable(rows: np.ndarray, whose: str) -> None:
    """UserError where outputs (N, F) are not finite, or too large to compute with.

    The weights may be finite, and their file whole: other programs write such files too.
    """
    usable = (rows.max(1) <= GREATEST) & (rows.min(1) >= -GREATEST)  # false for NaN
    if not usable.all():
        raise UserError(
            f"the outputs {whose} for {(~usable).sum():,} of {counted(len(rows), 'image')} are not"
            " finite, or too large to compute with: its weights are damaged, or of a run that"
            " diverged; make or fetch the artifact again"
        )


class Predictions(NamedTuple):
    """What a classifier says of the labeled images of a set, in their order.

    Attributes:
        positions: (N,) int64 in the image set.
        predictions: (N,) int64, the likeliest class.
        targets: (N,) int64, the labels.
        metrics: ``classification_metrics``.
    """

    positions: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    metrics: dict[str, float]

    @classmethod
    def from_answers(
        cls, positions: np.ndarray, answers: Tensor, targets: np.ndarray, classes: int
    ) -> "Predictions":
        """From the (N, 4) answers of one of ``classes`` classes."""
        metrics = _summary(answers, torch.from_numpy(targets), classes)
        return cls(positions, answers[:, 0].long().numpy(), targets, metrics)

    @classmethod
    def from_logits(
        cls, positions: np.ndarray, logits: np.ndarray, targets: np.ndarray
    ) -> "Predictions":
        """From (N, C) logits, or log probabilities."""
        answers = _answers(torch.from_numpy(logits), torch.from_numpy(targets))
        return cls.from_answers(positions, answers, targets, logits.shape[1])

    def arrays(self) -> dict[str, np.ndarray]:
        """``positions``, ``predictions`` and ``targets``, to be saved."""
        return {name: array for name, array in self._asdict().items() if name != "metrics"}


def predict(
    model: nn.Module,
    images: ImageSet,
    data: Data,
    accelerator: Accelerator,
    batch_size: int = 512,
) -> Predictions:
    """Show all labeled images to a model, divided among the processes; each gets all answers.

    The model stays in eval mode.
    """
    model.eval()

    def answers(batch: Tensor, _: int, positions: np.ndarray) -> Tensor:
        with accelerator.autocast():
            logits = model(batch)
        return _answers(logits, torch.from_numpy(images.labels[positions]).to(logits.device))

    ids = np.flatnonzero(images.labels != UNLABELED)
    rows, positions = over_images(answers, images, ids, data, accelerator, batch_size, "testing")
    require_usable(rows, "of the network")
    targets, classes = images.labels[positions], len(images.classes)
    return Predictions.from_answers(positions, torch.from_numpy(rows), targets, classes)


def state_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers, to prove that a frozen network was frozen."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
