"""What every command does around its stage: one Accelerator, signals, errors."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from traceback import clear_frames

import torch
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, set_seed

from shared.config.schema import Config
from shared.runtime.distributed import agree
from shared.runtime.errors import UserError
from shared.runtime.stop import Stopped, StopRequest

NO_SHARDING = (
    "accelerate is configured for {}, but artifacts are written from whole models; choose a"
    " configuration without it, and --checkpoint_activations=true or --pretrain.micro_batch where"
    " memory is short (docs/large.md)"
)


def hardware_precision() -> str:
    """``bf16`` where matrix products in bf16 are fast (recent GPUs, CPUs with AMX), else ``no``."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "no"


def precision_of(config: Config) -> str:
    """``bf16`` or ``no``, from ``--precision`` and from what accelerate's launcher was told.

    ``accelerate launch`` sets ``no`` where nobody asked for anything, so this value leaves the
    choice to ``--precision``; ``bf16`` was asked for, and wins over ``auto``.

    Raises:
        UserError: where the two contradict each other, or the launcher asks for something else.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launcher not in ("no", "bf16"):
        raise UserError(
            f"accelerate is configured for mixed_precision {launcher}, but training is in bf16 or"
            " float32; give accelerate launch --mixed_precision bf16, or no"
        )
    if launcher == "bf16" and config.precision == "no":
        raise UserError(
            "accelerate is configured for mixed_precision bf16, but --precision is no; give one"
        )
    if launcher == "bf16":
        return "bf16"
    return hardware_precision() if config.precision == "auto" else config.precision


def refuse_launcher_settings() -> None:
    """UserError where accelerate's launcher asks for what the stages do not do."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise UserError(
            f"accelerate is configured for {steps} gradient accumulation steps, but a contrastive"
            " loss needs the batch as one; leave it out, and give --pretrain.micro_batch where"
            " memory is short (docs/large.md)"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(
            f"accelerate is configured for the dynamo backend {backend}; leave it out, and give"
            " --compile true"
        )
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(NO_SHARDING.format(name))


def require_tracker(name: str) -> None:
    """UserError where a tracker is asked for that is not installed; accelerate would go on."""
    if name != "none" and LoggerType(name) not in get_available_trackers():
        raise UserError(
            f"--tracker {name} is not installed here; install it (pip install {name}) or leave"
            " --tracker out"
        )


def require_shared_folder(folder: Path, accelerator: Accelerator, patience: float = 10.0) -> None:
    """UserError where not every process sees the folder that the main process writes to.

    The stages hand over through folders, so the processes of several machines need one file system.

    Args:
        folder: of all runs; the main process makes it.
        accelerator: of this process. All processes must call this.
        patience: seconds until a new file must be seen; network file systems take a moment.
    """
    token = folder / ".seen-by-all-processes"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    accelerator.wait_for_everyone()
    deadline = time.monotonic() + patience
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    accelerator.wait_for_everyone()  # all have looked
    if accelerator.is_main_process:
        token.unlink(missing_ok=True)
    missed, _ = agree(not seen, 0)
    if missed:
        raise UserError(
            f"not every process sees {folder}: all processes write and read it; give an --output on"
            " a file system that all machines share"
        )


def refuse_sharding(accelerator: Accelerator) -> None:
    """UserError where accelerate's own configuration asks to shard the model."""
    kind = accelerator.distributed_type
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(NO_SHARDING.format(kind.value))


def set_up_gpu(precision: str) -> None:
    """Let cuDNN choose its fastest kernels by trying; with precision ``no`` keep to float32.

    Image sizes do not change within a stage, so trying pays. torch rounds the inputs of float32
    convolutions to TF32 (10 bits of mantissa) by default. Setting the newer ``fp32_precision``
    makes every later read of ``allow_tf32`` fail (torch 2.14), also torch's own in
    ``torch.backends.cudnn.flags``; so the older switches are set.
    """
    torch.backends.cudnn.benchmark = True
    if precision == "no":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let the C library keep what torch frees on CPU for the next step; only glibc has the switch.

    By default it gives large blocks back to the system, which clears each page again when the next
    step asks for it: a tenth of the time of a step of ResNet-18 on small images
    (docs/performance.md). The process then holds on to the most memory that it ever used.
    """
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    with suppress(OSError, TypeError, AttributeError):  # no such library, or no such function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
        mallopt(arena_max, 1)  # the thread that makes batches would give back its own


def run_command(stages: Callable[[Config, Accelerator], object], config: Config) -> int:
    """Make the one Accelerator, run the stages, report errors.

    Args:
        stages: does the work.
        config: what the command line asked for.

    Returns:
        The exit code: 0; 2 after bad input, with one line on standard error; 128 + the number of a
        signal that asked the run to stop, after saving.
    """
    main_process = int(os.environ.get("RANK", 0)) == 0
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        refuse_launcher_settings()
        require_tracker(config.tracker)
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes on CPU would not meet
            mixed_precision=precision_of(config),
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=config.folder,
        )
        refuse_sharding(accelerator)
        if accelerator.num_processes > 1:
            require_shared_folder(Path(config.output), accelerator)
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        elif accelerator.device.type == "cuda":
            set_up_gpu(accelerator.mixed_precision)
        accelerator.init_trackers(config.run)
        StopRequest.listen()
        set_seed(config.seed)
        stages(config, accelerator)
        accelerator.end_training()
    except UserError as error:
        who = "" if main_process else f"process {os.environ['RANK']}: "
        print(f"error: {who}{error}", file=sys.stderr)
        clear_frames(error.__traceback__)
        return 2
    except Stopped as stopped:
        if main_process:
            with suppress(OSError):  # the terminal may be closed
                print(stopped.args[0], file=sys.stderr)
        # the frames keep workers alive, who would be waited for at the process's end
        clear_frames(stopped.__traceback__)
        return 128 + (StopRequest.received or signal.SIGTERM)
    return 0
