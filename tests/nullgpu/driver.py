"""Runs commands of the project on the null GPU, in one process: driver.py COMMANDS RESULTS.

COMMANDS is a JSON file: a list of objects as the fields of ``Command``. RESULTS gets one JSON line
per command and process, as soon as the command has ended.

Numbers on the null GPU mean nothing, so four things that read them are replaced: whether losses and
weights are finite, also those of files; what the processes gather of the test images; and the hash
of frozen weights.
NCCL's barrier waits for nobody here, so processes wait for one another by gloo.
cuDNN's kernels cannot be answered for, so cuDNN is off and convolutions are matrix products.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from shared.data import batches
from shared.networks import build
from shared.runtime import checkpoints
from shared.training import evaluate, predictor, stage
from shared.training.stage import Stage
from stages import finetune


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: of the case.
        module: ``main`` of this module is called.
        arguments: the command line.
        stop_after: the command is asked to stop after this step, and called again to go on.
        strict: nothing in a step may wait for the GPU.
    """

    name: str
    module: str
    arguments: list[str]
    stop_after: int | None = None
    strict: bool = False

    def call(self) -> None:
        """Raise unless the command ends as it should."""
        AcceleratorState._reset_state()  # accelerate allows one precision per process
        code = importlib.import_module(self.module).main(self.arguments)
        if code:
            raise AssertionError(f"{self.name} ended with exit code {code}")


def run(command: Command) -> None:
    """Run one command; raise unless it ends as it should, with the checks of this file."""
    if command.stop_after is not None:
        stop_and_leave(command, command.stop_after)
    with replaced(Stage, "finish", with_equal_layouts):
        if command.strict:
            with_strict_steps(command)
        else:
            command.call()


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Within the context, ``make(original)`` stands for an attribute."""
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def stop_and_leave(command: Command, after: int) -> None:
    """Run until a real signal stops the command after a step."""

    def stopping(checkpoint):
        def stop(self, step):
            if step == after:
                signal.raise_signal(signal.SIGTERM)
            checkpoint(self, step)

        return stop

    AcceleratorState._reset_state()
    with replaced(Stage, "checkpoint", stopping):
        code = importlib.import_module(command.module).main(command.arguments)
    if code != 128 + signal.SIGTERM:
        raise AssertionError(f"{command.name} was to be stopped, and ended with exit code {code}")


def with_equal_layouts(finish):
    """Before a stage finishes: what the optimizer keeps lies in memory as its weight does."""

    def checked(self, *arguments, **options):
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                for name, value in self.optimizer.state[weight].items():
                    if not torch.is_tensor(value) or value.shape != weight.shape:
                        continue
                    layouts = value.device, value.stride(), weight.device, weight.stride()
                    assert layouts[:2] == layouts[2:], f"{name} of a weight: {layouts}"
        return finish(self, *arguments, **options)

    return checked


def with_strict_steps(command: Command) -> None:
    """Run with every wait for the GPU forbidden in a step, from making its batch to the update.

    Batches are made in the step's own thread, because torch's switch counts for all threads.
    Checkpoints and the log may wait; and so may the second step of several processes, in which
    DistributedDataParallel once orders its buckets.
    """

    def strict_from_here(checkpoint):
        def save(self, step):
            checkpoint(self, step)
            if step - self.start != 1 or self.accelerator.num_processes == 1:
                torch.cuda.set_sync_debug_mode("error")

        return save

    def in_strict_steps(around):
        def steps(self, made):
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield from around(self, made)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return steps

    def lenient_from_here(log_is_due):
        def due(self):
            torch.cuda.set_sync_debug_mode("default")
            return log_is_due.fget(self)

        return property(due)

    def in_this_thread(_):
        return lambda make, start, stop, depth=2: (make(step) for step in range(start, stop))

    with (
        replaced(Stage, "_around", in_strict_steps),
        replaced(Stage, "checkpoint", strict_from_here),
        replaced(Stage, "log_is_due", lenient_from_here),
        replaced(batches, "_ahead", in_this_thread),
    ):
        command.call()


def ignore_numbers() -> None:
    """Replace what reads numbers that no kernel has computed."""
    torch.backends.cudnn.enabled = False
    stage.all = lambda finite: len(list(finite)) > 0  # whether weights are; they are still read
    Stage.require_finite = lambda self, loss: loss()
    for reader in (checkpoints, build):  # of checkpoints and of weights
        reader.require_finite = lambda tensors: None
    for reader in (evaluate, predictor):  # of what a network answers
        reader.require_usable = lambda rows, whose: None
    finetune.state_hash = lambda model: ""
    gather = Accelerator.gather

    def gather_zeros(self, tensors):
        gathered = gather(self, tensors)
        return tuple(torch.zeros_like(tensor, device="cpu") for tensor in gathered)

    Accelerator.gather = gather_zeros


def wait_by_gloo() -> None:
    """Let ``Accelerator.wait_for_everyone`` wait for every process."""
    group = cache(lambda: dist.new_group(backend="gloo"))
    Accelerator.wait_for_everyone = lambda self: dist.barrier(group())


def main() -> int:
    commands, results = Path(sys.argv[1]), Path(sys.argv[2])
    assert torch.cuda.get_device_name() == "Null GPU"
    ignore_numbers()
    if "RANK" in os.environ:
        wait_by_gloo()
    for fields in json.loads(commands.read_text()):
        command, error = Command(**fields), ""
        print(f"--- {command.name}", flush=True)
        try:
            run(command)
        except BaseException:
            error = traceback.format_exc(limit=-8)
        with results.open("a") as file:
            file.write(json.dumps({"name": command.name, "error": error}) + "\n")
        if error and "RANK" in os.environ:
            return 1  # the launcher ends the other processes
    return 0


if __name__ == "__main__":
    sys.exit(main())
