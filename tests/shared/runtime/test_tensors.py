"""Files of tensors: damaged ones, hostile ones, what a crash leaves; nothing is executed."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from shared.runtime import tensors
from shared.runtime.files import clean
from shared.runtime.tensors import load_tensors, require_finite, save_tensors
from tests.support.stage_folder import message, network


# ------------------------------------------------------------------------ damaged or hostile files
class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("content", ["pickle", "torch.save", "nothing", "huge header"])
def test_what_is_no_safetensors_file_is_never_executed(tmp_path, content):
    marker, path = tmp_path / "executed", tmp_path / "model.safetensors"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif content == "torch.save":
        torch.save({"weight": Bomb(marker)}, path)
    elif content == "huge header":
        path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    else:
        path.write_bytes(b"")
    says = message(load_tensors, path)
    assert says.startswith("is truncated or not a safetensors file")
    assert not marker.exists()
    if content == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()  # it would have worked


def test_truncated_weights_at_any_place(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, network().state_dict(), {"step": "1"})
    whole = path.read_bytes()
    for length in (1, 7, 8, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated" in message(load_tensors, path)
    path.unlink()
    assert "does not exist" in message(load_tensors, path)


def test_nothing_in_the_code_unpickles():
    root = Path(__file__).parents[3]
    sources = [root / "pipeline.py", *root.glob("shared/**/*.py"), *root.glob("stages/**/*.py")]
    assert len(sources) > 40
    for source in sources:
        text = source.read_text()
        for word in ("torch.load", "pickle.load", "allow_pickle=True", "joblib", "eval(", "exec("):
            assert not re.search(rf"\b{re.escape(word)}(?!\))", text), source


def test_all_that_a_crash_leaves_of_a_file_of_tensors_is_cleaned(tmp_path, monkeypatch):
    """safetensors writes under a name of its own; here it is killed before it takes that away."""

    def killed(tensors, path, notes):
        (Path(path).parent / ".tmpAbC123").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensors, "save_file", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nor does anything else
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("*"))) == 3
    clean(tmp_path, alone=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.float64])
def test_numbers_of_any_size_are_looked_at(dtype):
    tensors = {"good": torch.ones(3, dtype=dtype), "count": torch.ones(3, dtype=torch.int64)}
    require_finite(tensors)
    tensors["bad\x1b[2J"] = torch.tensor([1.0, float("nan")]).to(dtype)
    assert message(require_finite, tensors) == "'bad\\x1b[2J' has numbers that are not finite"
