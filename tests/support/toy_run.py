"""A run at toy size on the embedded digits."""

import json

from safetensors.torch import load_file

from shared.config.command_line import load_config
from stages import pretrain

TINY = [
    "--model.encoder=simclr_resnet8_1x_sk0",
    "--model.head_width=32",
    "--model.head_out=16",
    "--pretrain.steps=6",
    "--pretrain.batch_size=32",
    "--pretrain.warmup_epochs=0",
    "--finetune.steps=4",
    "--linear.steps=4",
    "--supervised.steps=4",
    "--supervised.warmup_epochs=0",
    "--distill.steps=4",
    "--distill.batch_size=32",
    "--distill.warmup_epochs=0",
    "--precision=no",
    "--threads=1",
]


def run_pretrain(output, accelerator, *options):
    """Lines of the log, and weights and buffers, of stage 1 at toy size."""
    arguments = [*TINY, f"--output={output}", "--pretrain.steps=3", "--pretrain.log_every_steps=1"]
    folder = pretrain.run(load_config([*arguments, *options], "", "")[0], accelerator)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return lines, load_file(folder / "model.safetensors")


def call(main, output, *options: str) -> int:
    return main([*TINY, f"--output={output}", *options])
