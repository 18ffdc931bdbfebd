"""What every import ends with."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from shared.runtime.errors import UserError
from stages.import_weights.artifact import require_empty
from stages.import_weights.command import main
from stages.import_weights.tf_checkpoint import open_checkpoint
from tests.support.imported import fails
from tests.support.tensorflow_files import TF1, write_tensors


def test_output_that_is_no_number(golden_checkpoints, tmp_path, capsys):
    source = open_checkpoint(golden_checkpoints / TF1)
    tensors = {k: source.read(k) for k, e in source.entries.items() if e.dtype == 1}
    tensors["base_model/conv2d_3/kernel"][0, 0, 0, 0] = np.nan
    prefix = write_tensors(tmp_path / "ckpt", tensors.items())
    assert "not finite" in fails(capsys, prefix, tmp_path / "out", "--selector=1")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_published_weights_of_a_run_that_diverged(tmp_path, capsys, value):
    tensors = timm.create_model("test_byobnet").state_dict()
    tensors["stem.conv.weight"][0, 0, 0, 0] = value
    save_file(tensors, tmp_path / "weights.safetensors")
    source = f"timm:test_byobnet={tmp_path / 'weights.safetensors'}"
    assert "not finite" in fails(capsys, source, tmp_path / "out")


@pytest.mark.parametrize("file", ["meta.json", "settings.json"])
def test_an_artifact_is_never_written_over(tmp_path, file):
    require_empty(tmp_path)
    require_empty(tmp_path / "new")
    (tmp_path / file).write_text("{}")
    with pytest.raises(UserError, match="holds an artifact; delete it"):
        require_empty(tmp_path)


def test_the_same_import_again_leaves_what_is_there_and_another_is_refused(tmp_path, capsys):
    """A command that was killed just before its end ends well, when it is given again."""
    out = tmp_path / "out"
    save_file(timm.create_model("test_byobnet").state_dict(), tmp_path / "weights.safetensors")
    command = [f"timm:test_byobnet={tmp_path / 'weights.safetensors'}", str(out)]
    assert main(command) == 0
    files = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.iterdir()}
    assert main(command) == 0
    assert files == {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in out.iterdir()}
    capsys.readouterr()
    assert main([*command, "--image-size=64"]) == 2
    assert "holds an artifact; delete it" in capsys.readouterr().err
