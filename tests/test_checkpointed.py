"""Checkpointed activations: all three stages write the same artifact."""

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from shared.config.command_line import load_config
from shared.networks import resnet
from shared.runtime.errors import UserError
from stages import distill, finetune, pretrain
from tests.support.toy_run import TINY

SHORT = ["--pretrain.steps=2", "--finetune.steps=2", "--distill.steps=2"]


def run(output, *options):
    """Weights and buffers of each stage, and how often a block was passed for recomputation."""
    config = load_config([*TINY, *SHORT, f"--output={output}", *options], "", "")[0]
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    results, calls, recomputed = {}, [], resnet._recomputed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "_recomputed", lambda *args: calls.append(1) or recomputed(*args))
        for stage in (pretrain, finetune, distill):
            folder = stage.run(config, accelerator)
            results[stage] = load_file(folder / "model.safetensors"), len(calls)
            calls.clear()
    return results


def test_no_bit_changes(tmp_path):
    """With batch norm of the batch (stages 1, 3) and frozen (stage 2, as the digits' recipe)."""
    plain, checkpointed = run(tmp_path / "a"), run(tmp_path / "b", "--checkpoint_activations=true")
    for stage, (tensors, calls) in plain.items():
        assert calls == 0
        assert checkpointed[stage][1] == 2 * 3, stage  # steps, blocks: neither teacher nor tests
        for name, tensor in tensors.items():
            assert checkpointed[stage][0][name].equal(tensor), (stage, name)


def test_an_encoder_that_cannot_is_named(tmp_path):
    with pytest.raises(UserError, match="ResNet has batch norm, which checkpoint_activations"):
        run(
            tmp_path,
            "--checkpoint_activations=true",
            "--model.encoder=test_resnet",
            "--data.image_size=32",
        )
