"""Models on their device: layout, precision, compilation; numbers read without waiting."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shared.config.schema import Config
from shared.networks.encoders import create_encoder
from shared.networks.heads import Classifier
from shared.runtime.errors import UserError
from shared.training import device
from shared.training.device import prepare_to_train, read_later, to_device, to_inference


def process(precision: str = "no") -> SimpleNamespace:
    return SimpleNamespace(num_processes=1, mixed_precision=precision, device=torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_a_number_does_not_wait_for_what_was_queued_after_it():
    number = torch.rand((), device="cuda", requires_grad=True) * 2
    read, done = read_later(number), torch.cuda.Event()
    torch.cuda._sleep(10**9)
    done.record()
    assert read() == number.detach().cpu().item() or not done.query()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_inference_predicts_as_the_model_does(precision):
    torch.manual_seed(0)
    model = Classifier(create_encoder("simclr_resnet8_1x_sk0", 16), 5)
    model(torch.rand(16, 3, 16, 16))  # batch norm has counted
    torch.nn.init.normal_(model.linear.weight)
    images = torch.rand(4, 3, 16, 16)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model(images)
        fast = to_inference(model, Config(), process(precision))
        got = fast(images)
    assert got.dtype == torch.float32
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    tolerance = 1e-5 if precision == "no" else 0.02 * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


def test_compiling_keeps_the_names_and_needs_a_compiler(monkeypatch):
    model = Classifier(create_encoder("simclr_resnet8_1x_sk0", 16), 5)
    names = list(model.state_dict())
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setenv("CXX", "python")  # is there
    prepare_to_train(model, Config(compile=True), process())
    assert compiled == [model.encoder]
    assert list(model.state_dict()) == names
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler, .* no python here"):
        prepare_to_train(model, Config(compile=True), process())
    prepare_to_train(
        model.requires_grad_(False), Config(compile=True), process()
    )  # nothing to train
    prepare_to_train(model.requires_grad_(True), Config(), process())
    assert compiled == [model.encoder]


def test_a_network_that_only_answers_is_never_compiled(monkeypatch):
    """It may be a bare encoder, whose parameters still ask for gradients."""
    monkeypatch.setattr(nn.Module, "compile", lambda module: pytest.fail("compiled"))
    config = Config(compile=True, checkpoint_activations=True)
    encoder = create_encoder("simclr_resnet8_1x_sk0", 16)
    to_device(encoder, config, process())
    to_device(Classifier(encoder, 5), config, process())
    assert not encoder.grad_checkpointing


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_lie_as_their_weights(layout, kernel):
    """In every stride, those of one element too; and their numbers stay."""
    convolution = nn.Conv2d(8, 4, kernel, bias=False).to(memory_format=layout)
    images = torch.randn(2, 8, 5, 5).to(memory_format=layout)
    convolution(images).sum().backward()
    expected = convolution.weight.grad.clone()
    convolution.weight.grad = None
    device.let_gradients_lie_as_weights(convolution)
    for strides in ((8, 1, 8, 8), (8, 1, 1, 1)):
        weight = convolution.weight
        if kernel == 1:  # as cuDNN or a matrix product may return it
            (weight * expected.as_strided(expected.shape, strides)).sum().backward()
        else:
            convolution(images).sum().backward()
        assert weight.grad.stride() == weight.stride()
        assert torch.equal(weight.grad, expected)
        weight.grad = None
