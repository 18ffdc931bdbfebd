"""How good a classifier is on the test images: top-1, top-5, likelihood, calibration."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from shared.config.schema import Data
from shared.data.batches import plain_batches
from shared.data.images import UNLABELED, ImageSet
from shared.runtime.progress import Progress


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
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5)
    hit = ranked == targets[:, None]
    confidence = logits.softmax(1).amax(1)  # (N,)
    bins = (confidence * 15).long().clamp_(max=14)
    # sum over bins of |right predictions - confidence| / N
    gaps = torch.zeros(15, device=logits.device).index_add_(0, bins, hit[:, 0].float() - confidence)
    metrics = {"top1": hit[:, 0].float().mean().item()}
    if logits.shape[1] > 5:
        metrics["top5"] = hit.any(1).float().mean().item()
    metrics["nll"] = F.cross_entropy(logits, targets).item()
    metrics["ece"] = (gaps.abs().sum() / len(targets)).item()
    return metrics


@torch.inference_mode()
def predict(
    model: nn.Module, images: ImageSet, data: Data, accelerator: Accelerator, batch_size: int = 512
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) float32 and classes (N,) of all labeled images, on every process.

    The images are divided among the processes. The model stays in eval mode.
    """
    model.eval()
    ids = np.flatnonzero(images.labels != UNLABELED)
    mine = ids[accelerator.process_index :: accelerator.num_processes]
    # for a process without any image: its logits have the right width too
    logits = [torch.zeros(0, len(images.classes), device=accelerator.device)]
    targets = [torch.zeros(0, dtype=torch.int64, device=accelerator.device)]
    with Progress("evaluating", len(mine), "images", shown=accelerator.is_main_process) as bar:
        for batch, positions in plain_batches(images, mine, data, batch_size, accelerator.device):
            with accelerator.autocast():
                logits.append(model(batch).float())
            targets.append(torch.from_numpy(images.labels[positions.numpy()]).to(batch.device))
            bar.update(len(batch))
    # processes may hold different numbers of images: pad with rows marked -1
    padded = accelerator.pad_across_processes(
        (torch.cat(logits), torch.cat(targets)), dim=0, pad_index=UNLABELED
    )
    all_logits, all_targets = accelerator.gather(padded)
    labeled = all_targets != UNLABELED
    return all_logits[labeled], all_targets[labeled]


def evaluate(
    model: nn.Module, test: ImageSet | None, data: Data, accelerator: Accelerator
) -> dict[str, float]:
    """Count the parameters and, where there are test images, measure the predictions on them."""
    parameters = sum(p.numel() for p in model.parameters())
    if test is None:
        return {"parameters": parameters}
    metrics = classification_metrics(*predict(model, test, data, accelerator))
    return {"parameters": parameters, **metrics}


def state_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers, to prove that a frozen network was frozen."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
