"""How good a classifier is on the test images: top-1, top-5, likelihood, calibration."""

import hashlib
from typing import NotRequired, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet


class Result(TypedDict):
    """One row of results: ``result`` in a classifier's ``meta.json``, a line of results.jsonl.

    ``stage`` is the method's name, ``labels`` the tag of the label set. Without test images there
    are no metrics; ``top5`` is there for more than 5 classes.
    """

    stage: str
    labels: str
    n_labels: int
    seed: int
    parameters: int
    top1: NotRequired[float]
    top5: NotRequired[float]
    nll: NotRequired[float]
    ece: NotRequired[float]
    seconds: float


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Measure predictions.

    Args:
        logits: (N, C) float.
        targets: (N,) int64 in 0..C-1.

    Returns:
        ``top1`` and, for more than 5 classes, ``top5`` (shares in [0, 1]), ``nll`` (mean negative
        log likelihood, nats) and ``ece`` (expected calibration error in 15 bins of equal width;
        Guo et al. 2017, section 2).
    """
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hit = ranked == targets[:, None]
    metrics = {"top1": hit[:, 0].float().mean().item()}
    if logits.shape[1] > 5:
        metrics["top5"] = hit.any(1).float().mean().item()
    metrics["nll"] = F.cross_entropy(logits, targets).item()
    confidence = logits.softmax(1).amax(1)  # (N,)
    bins = (confidence * 15).long().clamp_(max=14)
    # sum over bins of |right predictions - confidence| / N
    gaps = torch.zeros(15, device=logits.device).index_add_(0, bins, hit[:, 0].float() - confidence)
    metrics["ece"] = (gaps.abs().sum() / len(targets)).item()
    return metrics


@torch.inference_mode()
def predict(
    model: nn.Module, images: ImageSet, data: Data, accelerator: Accelerator, batch_size: int = 512
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) float32 and classes (N,) of all labeled images, on every process.

    The images are divided among the processes. The model is left in eval mode.
    """
    model.eval()
    ids = np.flatnonzero(images.labels != UNLABELED)
    mine = ids[accelerator.process_index :: accelerator.num_processes]
    # a process may have no image at all, and still knows the number of classes
    logits = [torch.zeros(0, len(images.classes), device=accelerator.device)]
    targets = [torch.zeros(0, dtype=torch.int64, device=accelerator.device)]
    for batch, positions in plain_batches(images, mine, data, batch_size, accelerator.device):
        with accelerator.autocast():
            logits.append(model(batch).float())
        targets.append(torch.from_numpy(images.labels[positions.numpy()]).to(batch.device))
    # processes may hold different numbers of images: pad with rows marked -1
    padded = accelerator.pad_across_processes(
        (torch.cat(logits), torch.cat(targets)), dim=0, pad_index=UNLABELED
    )
    all_logits, all_targets = accelerator.gather(padded)
    there = all_targets != UNLABELED
    return all_logits[there], all_targets[there]


def evaluate(
    model: nn.Module, test: ImageSet | None, data: Data, accelerator: Accelerator
) -> dict[str, float]:
    """Parameters, and the metrics on the test images where there are any: one row of the table."""
    row: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    if test is not None:
        row |= classification_metrics(*predict(model, test, data, accelerator))
    return row


def state_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers, to prove that a frozen network was frozen."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
