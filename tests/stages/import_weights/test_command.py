"""The command line of ``stages.import_weights``."""

from tests.support.imported import fails, meta_of, run
from tests.support.published import publish
from tests.support.tensorflow_files import TF1

BYOB = "test_byobnet"


def test_arguments_of_a_checkpoint_are_checked(golden_checkpoints, tmp_path, capsys):
    source, out = golden_checkpoints / TF1, tmp_path / "out"
    assert "4 to 32 pixels" in fails(capsys, source, out, "--image-size=64")
    assert "4 to 32 pixels" in fails(capsys, source, out, "--image-size=-1")
    classes = tmp_path / "classes.txt"
    assert "cannot read" in fails(capsys, source, out, f"--classes={classes}")
    classes.write_text("cat\ndog\n")
    line = fails(capsys, source, out, f"--classes={classes}", "--selector=1")
    assert "names 2 classes" in line
    assert "--wrong" in fails(capsys, source, out, "--wrong")
    classes.write_text("".join(f"n{i}\n" for i in range(10)))
    assert run(source, out, f"--classes={classes}", "--image-size=8", "--selector=1") == 0
    assert meta_of(out)["classes"] == [f"n{i}" for i in range(10)]
    assert meta_of(out)["image_size"] == 8
    before = (out / "meta.json").read_bytes()
    assert run(source, out, "--selector=1") == 2  # never written over
    assert "holds an artifact" in capsys.readouterr().err
    assert (out / "meta.json").read_bytes() == before


def test_arguments_of_published_weights_are_checked(tmp_path, capsys):
    publish(BYOB, tmp_path / "weights.bin")
    source, out = f"timm:{BYOB}={tmp_path / 'weights.bin'}", tmp_path / "out"
    for flags in (["--as=classifier"], ["--selector=1"], ["--ema"], ["--drop=x"], ["--classes=x"]):
        assert "for checkpoints of TensorFlow" in fails(capsys, source, out, *flags)
    assert "at least 4 pixels" in fails(capsys, source, out, "--image-size=0")
    publish("test_vit", tmp_path / "vit.safetensors")
    line = fails(capsys, f"timm:test_vit={tmp_path / 'vit.safetensors'}", out, "--image-size=50")
    assert "a multiple of its patch size" in line
    assert run(source, out) == 0
    before = (out / "meta.json").read_bytes()
    assert run(source, out, "--image-size=64") == 2  # never written over
    assert "holds an artifact" in capsys.readouterr().err
    assert (out / "meta.json").read_bytes() == before
