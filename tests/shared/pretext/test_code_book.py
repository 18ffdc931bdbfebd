"""Code books: choice, temperature, even use and its perplexity, and that it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.pretext.build import make_task
from shared.pretext.code_book import CodeBookHead, Quantised, perplexity
from tests.support.pretext import learn, options_of

B, D, G, V = 8, 16, 2, 8


def task(*options: str) -> Quantised:
    config, _ = load_config([*options_of("contrastive-codes"), *options], "", "")
    made = make_task(config, Accelerator(cpu=True))
    assert isinstance(made, Quantised)
    return made


def test_the_choice_is_of_one_entry_each_and_its_gradient_a_softmax():
    torch.manual_seed(0)
    head = CodeBookHead(D, G, V, None)
    z, noise = torch.randn(5, D, requires_grad=True), torch.randn(5, G * V)
    for temperature in (0.1, 2.0):
        out = head(z, noise, torch.full((5, 1), temperature))
        own, quantised, logits = out.split([D, D, G * V], 1)
        assert torch.equal(own, z)
        best = (logits + noise).view(5, G, V).argmax(2)
        chosen = torch.cat([head.entries[g, best[:, g]] for g in range(G)], 1)
        assert torch.allclose(quantised, head.project(chosen), atol=1e-5)
        (gradient,) = torch.autograd.grad(quantised.sum(), head.choice.bias, retain_graph=True)
        soft = ((logits + noise).view(5, G, V) / temperature).softmax(2)
        mixed = torch.einsum("ngv,gvd->ngd", soft, head.entries.detach()).flatten(1)
        expected = torch.autograd.grad(head.project(mixed).sum(), head.choice.bias)[0]
        assert torch.allclose(gradient, expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(z, noise, torch.ones(5, 1)).dtype == torch.float32


def test_noise_is_gumbels_and_a_function_of_the_draw():
    (noise,) = task().draw(np.random.default_rng(0), 400)
    assert noise.shape == (400, 2, G * V)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.05)
    assert noise.std() == pytest.approx(math.pi / 6**0.5, abs=0.05)


def test_the_temperature_sinks_with_the_steps():
    made = task("--code_book.temperature=2", "--code_book.least_temperature=0.5")
    values = []
    for step in (0, 1, 5, 100):
        made.at(step)
        values.append(made.gumbel_temperature)
    assert values == pytest.approx([2, 1.8, 2 * 0.9**5, 0.5])


def test_perplexity_and_the_term_of_even_use():
    assert perplexity(torch.full((V,), 1 / V)).item() == pytest.approx(V)
    assert perplexity(F.one_hot(torch.tensor(3), V).float()).item() == pytest.approx(1)
    made = task("--code_book.diversity=1")
    z, q = torch.randn(2 * B, D), torch.randn(2 * B, D)
    one, even = torch.zeros(2 * B, G, V), torch.zeros(2 * B, G, V)
    one[:, :, 3] = 100
    even[torch.arange(2 * B), :, torch.arange(2 * B) % V] = 100
    answers = [made.loss((torch.cat([z, q, x.flatten(1)], 1),), ()) for x in (one, even)]
    assert (answers[0].loss - answers[1].loss).item() == pytest.approx(1 - 1 / V, abs=1e-4)
    for answer, used in zip(answers, (1, V), strict=True):
        assert answer.metrics()["code_perplexity"].item() == pytest.approx(used)


def test_each_view_is_compared_with_the_code_of_the_other():
    made = task("--code_book.diversity=0")
    z, q = torch.randn(2 * B, D), torch.randn(2 * B, D)
    answer = made.loss((torch.cat([z, q, torch.zeros(2 * B, G * V)], 1),), ())
    similar = F.normalize(z) @ F.normalize(q).T / made.cfg.temperature
    similar.fill_diagonal_(-math.inf)
    partner = torch.arange(2 * B).roll(B)
    assert answer.loss.item() == pytest.approx(
        2 * F.cross_entropy(similar, partner).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--code_book.groups=3", "code_book.groups must be a divisor of model.head_out=16, got 3"),
        ("--code_book.entries=1", "code_book.entries must be 2 to 32,768, got 1"),
        ("--code_book.decay=1.1", "code_book.decay must be in (0, 1], got 1.1"),
        ("--code_book.least_temperature=3", "at most code_book.temperature=2.0, got 3.0"),
        ("--pretrain.quantisation=none", "of pretrain.quantisation=gumbel, which is none"),
    ],
)
def test_what_does_not_fit_is_refused(option, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        task(option)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_it_learns(tmp_path):
    """Slowly: after 120 steps the loss is 4% below chance, after 320 by 17% (seed 1) to 24%."""
    options = ["--pretrain.steps=320", "--code_book.entries=32", "--pretrain.temperature=0.5"]
    line = learn(tmp_path, "contrastive-codes", *options)
    assert line["code_perplexity"] > 3
    assert line["loss"] < 0.9 * line["loss_of_chance"]
