"""What every command does around its stage: one Accelerator, signals, errors."""

import ctypes
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    InitProcessGroupKwargs,
    LoggerType,
    get_int_from_env,
    is_torch_xla_available,
    parse_flag_from_env,
    set_seed,
)

from shared.config.schema import Config
from shared.runtime import output
from shared.runtime.distributed import (
    PATIENCE,
    agree,
    fails_first,
    lost_contact,
    rank,
    word_of_main,
)
from shared.runtime.errors import UserError, memory_text, out_of_memory
from shared.runtime.files import temporary_name, write_atomically
from shared.runtime.launcher import WORLD_SIZES
from shared.runtime.lock import release_all
from shared.runtime.media import one_line, printable_lines, say
from shared.runtime.stop import Stopped, StopRequest

LESS_MEMORY = (
    "--checkpoint_activations true and fewer --data.workers need less, and the run goes on with"
    " them; so do, in another --run, a smaller --pretrain.micro_batch or batch_size,"
    " --data.image_size and --model.encoder (docs/large.md)"
)


def device_type() -> str:
    """``cuda`` (what torch calls so: also AMD's GPUs) or ``cpu``: where the stages train.

    ``accelerate launch --cpu`` chooses the CPU. So do machines whose accelerator is another one,
    such as Apple's: nobody has tried the stages there.

    Raises:
        UserError: where accelerate is told to take another device, or one that is not there.
    """
    if is_torch_xla_available():
        raise UserError(
            "torch_xla is installed, with which accelerate trains on a TPU, but training is on"
            " cuda or cpu; use an environment without torch_xla"
        )
    wish = os.environ.get("ACCELERATE_TORCH_DEVICE", "").split(":")[0]
    there = torch.cuda.is_available()
    if wish not in ("", "cpu", "cuda") or (wish == "cuda" and not there):
        trained_on = "cuda or cpu" if there else "cpu, as torch finds no GPU for cuda"
        raise UserError(
            f"accelerate is configured for the device {wish}, but training here is on {trained_on};"
            " leave ACCELERATE_TORCH_DEVICE out, or give accelerate launch --cpu"
        )
    if wish == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    return "cuda" if there else "cpu"


def hardware_precision(device: str) -> str:
    """``bf16`` where matrix products in bf16 are fast, else ``no``: float32.

    They are on recent GPUs, and on CPUs with AMX or with the bf16 products of AVX-512 (AMD from
    Zen 4 on): docs/performance.md. A CPU counts as what torch and oneDNN may use of it:
    ``ATEN_CPU_CAPABILITY=avx2`` or ``ONEDNN_MAX_CPU_ISA=AVX2`` make it one without both.
    """
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = (
            (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
            and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return "bf16" if fast else "no"


def precision_of(config: Config, device: str) -> str:
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
    return hardware_precision(device) if config.precision == "auto" else config.precision


def refuse_launcher_settings() -> None:
    """UserError where accelerate's launcher asks for what the stages do not do."""
    environ = os.environ
    # the launcher of one process sets USE_CPU; asked for more, it sets an address and starts one
    alone = not environ.keys() & set(WORLD_SIZES)
    if alone and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= environ.keys():
        raise UserError(
            "accelerate launch was asked for several processes, but without several GPUs it starts"
            " one; give  torchrun --nproc_per_node 2 -- pipeline.py ...  or --num_processes 1"
        )
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise UserError(
            f"accelerate is configured for {steps} gradient accumulation steps, but a contrastive"
            " loss needs the batch as one; leave it out, and give --pretrain.micro_batch where"
            " memory is short (docs/large.md)"
        )
    backend = environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise UserError(
            f"accelerate is configured for the dynamo backend {backend}; leave it out, and give"
            " --compile true"
        )
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise UserError(
                f"accelerate is configured for {name}, but artifacts are written from whole models;"
                " choose a configuration without it, and --checkpoint_activations=true or"
                " --pretrain.micro_batch where memory is short (docs/large.md)"
            )


def require_tracker(name: str) -> None:
    """UserError where a tracker is asked for that is not installed; accelerate would go on."""
    if name != "none" and LoggerType(name) not in get_available_trackers():
        raise UserError(
            f"--tracker {name} is not installed here; install it (pip install {name}) or leave"
            " --tracker out"
        )


def require_shared_folder(folder: Path, accelerator: Accelerator, patience: float = 5.0) -> None:
    """UserError where not every process sees the folder that the main process writes to.

    The stages hand over through folders, so the processes of several machines need one file system.
    Nothing stays in the folder, nor the folder if it is new.

    Args:
        folder: of all runs; the main process makes it.
        accelerator: of this process. All processes must call this.
        patience: seconds until a new file must be seen; network file systems take a moment.
    """
    # a new name: network file systems remember for half a minute that an old one was absent
    token = folder / word_of_main(temporary_name())
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    if accelerator.is_main_process:
        write_atomically(token, "")
    accelerator.wait_for_everyone()
    deadline = time.monotonic() + patience
    while not (seen := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    missed, _ = agree(not seen, 0)  # all have looked
    if accelerator.is_main_process:
        with suppress(OSError):
            token.unlink()
        for path in new_folders:
            with suppress(OSError):  # others write there as well
                path.rmdir()
    if missed:
        raise UserError(
            f"not every process sees {folder}: all processes write and read it; give an --output on"
            " a file system that all machines share"
        )


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


class _Accelerator(Accelerator):
    """Prints on the main process alone, with escapes for what would move the cursor."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """As `print`; what cannot be written ends nothing."""
        text = kwargs.get("sep", " ").join(printable_lines(str(arg)) for arg in args)
        if self.is_local_main_process:
            output.write(text + kwargs.get("end", "\n"))


def start(config: Config) -> Accelerator:
    """The one Accelerator of this process, with all processes met and the machine set up.

    Raises:
        UserError: where the launcher's settings or this machine do not do.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    refuse_launcher_settings()
    require_tracker(config.tracker)
    device = device_type()
    precision = precision_of(config, device)
    try:
        accelerator = _Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=config.folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (ImportError, NotImplementedError, ValueError) as error:
        raise UserError(f"accelerate cannot start: {' '.join(str(error).split())}") from error
    StopRequest.listen()
    if accelerator.num_processes > 1:
        require_shared_folder(Path(config.output), accelerator)
        if accelerator.is_main_process:
            processes = accelerator.num_processes
            machines = math.ceil(processes / get_int_from_env(["LOCAL_WORLD_SIZE"], processes))
            say(
                f"{processes} processes on {machines} machine{'s' * (machines > 1)}, {device}; all"
                f" of them see the folder {config.output}"
            )
    if accelerator.is_main_process and device == "cpu" and torch.accelerator.is_available():
        other = torch.accelerator.current_accelerator()
        if other and other.type != "cuda":
            say(f"training is on the CPU: the stages have not been tried on {other.type} devices")
    if device == "cpu":
        keep_freed_memory()
    else:
        set_up_gpu(precision)
    set_seed(config.seed)
    return accelerator


def run_command(stages: Callable[[Config, Accelerator], object], config: Config) -> int:
    """Make the one Accelerator, run the stages, report errors.

    Of several processes the first that fails tells why; the others, which lose it, leave quietly.

    Args:
        stages: does the work.
        config: what the command line asked for.

    Returns:
        The exit code: 0; 2 after bad input, with one line on standard error; 128 + the number of a
        signal that asked the run to stop, after saving; 1 where another process was lost.
    """
    try:
        accelerator = start(config)
        stages(config, accelerator)
        accelerator.end_training()
    except UserError as error:
        if fails_first():
            say(f"error: {one_line(error)}", error=True)
        clear_frames(error.__traceback__)
        return 2
    except Stopped as stopped:
        if rank() == 0:
            with suppress(OSError):  # the terminal may be closed
                say(stopped.args[0], error=True)
        # the frames keep workers alive, who would be waited for at the process's end
        clear_frames(stopped.__traceback__)
        return 128 + (StopRequest.received or signal.SIGTERM)
    except Exception as error:
        if not fails_first():
            return 1
        if out_of_memory(error):
            say(f"error: {one_line(memory_text(error, LESS_MEMORY))}", error=True)
            clear_frames(error.__traceback__)
            return 2
        if not lost_contact(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        say(
            f"error: process {rank()} lost another process ({reason}); run the same command again"
            " to go on from the last checkpoint",
            error=True,
        )
        return 1
    finally:
        release_all()
    return 0
