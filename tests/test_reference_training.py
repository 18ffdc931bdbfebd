"""Whole training runs as the authors' TF2 code makes them, step by step.

Each file in ``golden/e2e`` was recorded from the reference's ``run.py``, from initial weights and
batches that are functions of their names. Its flags choose what the project's own models, losses,
optimizers and schedule do here; a new file in the folder is followed like the others. What is
particular to the reference (two bugs, Keras' Adam, a linear head trained beside pretraining) is
glue in this file.

Training amplifies rounding: the gradients of the first batch norms are differences of large sums,
and LARS gives these layers the raw learning rate. So each run has a twin in float32 whose initial
weights are off by a relative 1e-6, as in ``e2e_sensitivity.json``, and a recorded number may differ
from ours by ``SLACK`` times what the twins differ (the most of its kind, up to this step).
In float64 (slow) only TensorFlow's rounding is left; docs/reference.md has the figures.
"""

import copy
import json
import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.networks.batchnorm import BatchNorm
from shared.networks.encoders import create_encoder
from shared.networks.heads import Classifier, ContrastiveModel, ProjectionHead, freeze
from shared.networks.resnet import reference_names
from shared.training.evaluate import classification_metrics
from shared.training.losses import Pairs, contrastive_metrics, nt_xent
from shared.training.optim import (
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    scaled_learning_rate,
    set_learning_rate,
    training_steps,
    warmup_steps,
)
from tests.shared.networks.test_heads import LEAVES, our_name, to_torch
from tests.support import golden

SCENARIOS = sorted(
    {f.stem for folder in (golden.HERE, golden.BESIDE) for f in (folder / "e2e").glob("*.npz")}
)
SENSITIVITY = json.loads(golden.path("e2e_sensitivity.json").read_text())
NOISE, SLACK, TIGHT = 1e-6, 30, 1e-5


# ------------------------------------------------------------------------- the reference's model
class Reference(nn.Module):
    """All variables of the reference's model: encoder, whole head, one linear layer."""

    def __init__(self, flags, classes):
        super().__init__()
        self.encoder = create_encoder(
            f"simclr_resnet{flags['resnet_depth']}_{flags['width_multiplier']}x_sk0",
            flags["image_size"],
            sk_ratio=flags["sk_ratio"],
            se_ratio=flags["se_ratio"],
        )
        layers = flags["num_proj_layers"]
        self.head = ProjectionHead(self.encoder.head_hidden_size, layers, flags["proj_out_dim"])
        self.selector = range(layers + 1)[flags["ft_proj_selector"]]  # -1 is the last
        self.linear = nn.Linear(self.head.widths[self.selector], classes)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.momentum = 1 - flags["batch_norm_decay"]
        self.to(memory_format=torch.channels_last)


def classifier_of(model, flags):
    """The project's classifier over the reference's modules, with the reference's two bugs."""
    classifier = Classifier(model.encoder, model.linear.out_features, model.head, model.selector)
    # reference.md 9, zero initialisation: its flag does nothing there, the restored layer stays.
    # Ours starts at zero; see test_the_linear_layer_starts_at_zero.
    classifier.linear = model.linear
    freeze(classifier, flags["fine_tune_after_block"])
    # reference.md 9, frozen blocks: their batch norm goes on using and counting batches there. Ours
    # does not; see test_frozen_blocks_stay_as_they_are.
    classifier.frozen = ()
    return classifier


class KerasAdam(torch.optim.Adam):
    """Keras adds epsilon before it corrects the bias of the second moment, torch after it."""

    def __init__(self, groups):
        super().__init__(groups, betas=(0.9, 0.999))
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["eps"] = 1e-7 / math.sqrt(1 - 0.999**self.steps)
        return super().step(closure)


def optimizer_of(trained, unused, flags):
    """The optimizer over all that the reference trains; ``unused`` are kernels without gradient."""
    name, decay = flags["optimizer"], flags["weight_decay"]
    if name == "lars":
        return build_optimizer("lars", trained, decay, flags["momentum"])
    # reference.md 7: the decay is a term of the loss over every trainable kernel and bias, so the
    # head's layers above the selected one, which no image reaches, shrink all the same.
    for kernel in unused:
        kernel.grad = torch.zeros_like(kernel)
    if name == "adam":  # L2 decay goes through the moments; the project offers AdamW instead
        optimizer = KerasAdam(parameter_groups(trained, "sgd", decay))
    else:
        optimizer = build_optimizer("sgd", trained, decay, flags["momentum"])
    if unused:
        optimizer.add_param_group({"params": unused, "weight_decay": decay, "adapt": False})
    return optimizer


def decay_term(optimizer, linear, flags):
    """What the reference adds to the loss; with LARS for the kernel of the linear layer only."""
    return sum(
        group["weight_decay"] * 0.5 * parameter.detach().double().square().sum().item()
        for group in optimizer.param_groups
        for parameter in group["params"]
        if flags["optimizer"] != "lars" or parameter is linear.weight
    )


# --------------------------------------------------------------------------------- its runs, ours
def images_of(scope, views, count, size):
    """(V * B, 3, S, S), all first views, then all second ones."""
    views = [golden.image(scope + view, count, size, size) for view in views]
    return torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2)  # channels last already


def labels_of(scope, count, classes):
    return torch.from_numpy(golden.rng(f"{scope}/labels").integers(0, classes, size=count))


def variables(arrays, model):
    """TensorFlow names of all variables -> ours."""
    trunk = reference_names(model.encoder)
    return {name: our_name(name, trunk) for name in arrays["final/var_names"].tolist()}


generated = lru_cache(golden.weight)


def initial_state(init, arrays, names, dtype, noise):
    if init != "w":  # the last checkpoint of another scenario
        return follow(init, dtype, noise).state
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in zip(names, arrays["final/var_shapes"].tolist(), strict=True):
        weight = to_torch(generated(name, tuple(json.loads(shape))))
        state[names[name]] = weight * (1 + noise * torch.randn(weight.shape, generator=draw))
    return state


@lru_cache
def follow(scenario, dtype, noise):
    """Train as the scenario says; what the reference recorded of it, by the same names."""
    arrays, meta = golden.load(f"e2e/{scenario}.npz")
    flags, spec = meta["flags"], meta["spec"]
    B, S = flags["train_batch_size"], flags["image_size"]
    pretraining = flags["train_mode"] == "pretrain"
    supervised = not pretraining or flags["lineareval_while_pretraining"]

    model = Reference(flags, spec["classes"]).to(dtype)
    names = variables(arrays, model)
    state = initial_state(spec["init"], arrays, names, dtype, noise)
    model.linear.requires_grad_(supervised)  # else the reference has none
    left = model.load_state_dict(state, strict=False)
    missing = [key for key in left.missing_keys if not key.endswith("num_batches_tracked")]
    assert not left.unexpected_keys
    assert not missing or not supervised
    start = {key: value.clone() for key, value in model.state_dict().items()}
    above = model.head.layers[model.selector :]
    if pretraining:
        trained, unused = model, []
        contrastive = ContrastiveModel(model.encoder, model.head)
        projections = []  # every layer's output, of which the model returns the last
        contrastive.head.register_forward_hook(lambda *call: projections.extend(call[-1]))
    else:
        trained, unused = classifier_of(model, flags), [layer.dense.weight for layer in above]
    optimizer = optimizer_of(trained, unused, flags)
    total = flags["train_steps"] or training_steps(spec["num_train"], flags["train_epochs"], B)
    warmup = warmup_steps(spec["num_train"], flags["warmup_epochs"], B)
    peak = scaled_learning_rate(flags["learning_rate"], B, flags["learning_rate_scaling"])

    series, outputs = {}, []
    model.train()
    for step in range(len(arrays["per_step/step"])):
        set_learning_rate(optimizer, learning_rate_at(step, total, warmup, peak))
        scope = f"e2e/{spec['data']}/batch{step}"
        images = images_of(scope, ["/v0", "/v1"] if pretraining else ["/v0"], B, S).to(dtype)
        labels = labels_of(scope, B, spec["classes"])
        decay = decay_term(optimizer, model.linear, flags)
        metrics, loss = {"train/weight_decay": decay}, images.new_zeros(())
        if pretraining:
            z1, z2 = contrastive(images).chunk(2)  # (B, D) each
            temperature, unit = flags["temperature"], flags["hidden_norm"]
            outputs.append(torch.cat([z1, z2]).detach().double())
            pairs = Pairs.of_views(z1, z2, normalize=unit)
            loss = nt_xent(pairs, temperature)
            accuracy, entropy = contrastive_metrics(pairs, temperature)
            metrics |= {
                "train/contrast_loss": loss.detach(),
                "train/contrast_entropy": entropy,
                "train/contrast_acc": accuracy,
            }
            labels = torch.cat([labels, labels])
            # Beside it the linear layer learns, without a say in what the network learns.
            logits = model.linear(projections[model.selector].detach())  # (2B, classes)
            projections.clear()
        else:
            features = trained.features(images)
            logits = trained.linear(features)  # (B, classes)
            outputs.append(logits.detach().double())
            with (
                torch.no_grad()
            ):  # reference.md 4: batch norm of the layers above counts batches too
                for layer in above:
                    features = layer(features)
        if supervised:
            cross_entropy = F.cross_entropy(logits, labels)
            loss = loss + cross_entropy
            hits = logits.argmax(1) == labels
            metrics |= {
                "train/supervised_loss": cross_entropy.detach(),
                "train/supervised_acc": hits.float().mean(),
            }
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # those of ``unused`` stay zero, not absent
        metrics["train/total_loss"] = loss.item() + decay
        tensors = model.state_dict()
        metrics |= {name: tensors[ours].norm(dtype=torch.float64) for name, ours in names.items()}
        for key, value in metrics.items():
            series.setdefault(key, []).append(float(value))

    model.eval()
    with torch.no_grad():
        images = images_of(f"e2e/{spec['data']}/eval", [""], spec["num_eval"], S).to(dtype)
        logits = model.linear(model.head(model.encoder(images))[model.selector])
    state = model.state_dict()
    return SimpleNamespace(
        arrays=arrays,
        flags=flags,
        spec=spec,
        dtype=dtype,
        model=model,
        names=names,
        state=state,
        series={key: np.array(values) for key, values in series.items()},
        moved={n: (state[k] - start[k]).double().norm().numpy()[None] for n, k in names.items()},
        outputs=outputs,
        logits=logits.double().numpy(),
        decay=decay_term(optimizer, model.linear, flags),
    )


# ---------------------------------------------------------------------------------- comparing them
# Where variables of one encoder block stand in its order of creation; 1 if not named here.
ORDER = {
    "initial_conv_relu_max_pool": 0,
    "shortcut_layers": 0,
    "projection_layers": 0,
    "conv2d_fixed_padding": 0,
    "batch_norm_relu": 0,
    "conv2d_1": 2,
    "se_layer": 2,
    "se_reduce": 0,
}


def checkpoint_variables(keys, model):
    """Keys of a TF2 checkpoint, paths of attributes and list indices, -> our names."""
    paths = {key: key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/") for key in keys}
    encoder = {}
    for kind, leaves in ((nn.Conv2d, "kernel bias"), (BatchNorm, "gamma beta moving_mean")):
        theirs = {
            tuple(path[:-1])
            for path in paths.values()
            if path[1] == "resnet_model" and path[-1] in leaves.split()
        }
        created = sorted(
            theirs, key=lambda p: [int(w) if w.isdigit() else ORDER.get(w, 1) for w in p]
        )
        ours = [n for n, module in model.encoder.named_modules() if isinstance(module, kind)]
        encoder |= dict(zip(created, ours, strict=True))
    names = {}
    for key, path in paths.items():
        if path[1] == "resnet_model":
            module = f"encoder.{encoder[tuple(path[:-1])]}"
        elif path[1] == "_projection_head":
            module = f"head.layers.{path[3]}.{'dense' if path[4] == 'dense' else 'norm'}"
        else:
            module = "linear"
        names[key] = f"{module}.{LEAVES[path[-1]]}"
    return names


def recorded(run):
    """The reference's numbers of every step, named as in ``run.series``."""
    arrays = run.arrays
    series = {k.removeprefix("per_step/"): v for k, v in arrays.items() if "per_step/train/" in k}
    keys = arrays["ckpt/model_keys"].tolist()
    theirs = {ours: name for name, ours in run.names.items()}
    norms = np.stack([arrays[f"step{t}/ckpt_l2"] for t in range(len(arrays["per_step/step"]))])
    for column, ours in enumerate(checkpoint_variables(keys, run.model).values()):
        series[theirs[ours]] = norms[:, column]
    return series


def kind(name):
    """Numbers of one kind drift alike: all losses, all kernels, all moving means, ..."""
    leaf = name.split("/")[-1]
    if leaf.endswith(("_loss", "_entropy")):
        return "loss"
    # linear layers have few biases; they move like beta, with the raw learning rate
    return {"weight_decay": "kernel", "bias": "beta"}.get(leaf, leaf)


def relative(ours, theirs):
    """|ours - theirs| / |theirs|, and |ours| where theirs is 0."""
    return np.abs(ours - theirs) / np.where(theirs == 0, 1, np.abs(theirs))


def allow(spread):
    return np.maximum(TIGHT, SLACK * spread)


def tolerances(ours, twin, sensitivity=None):
    """Of each kind, the relative error allowed at each step."""
    spread = {}
    for name, values in ours.items():
        apart = relative(twin[name], values)
        if sensitivity:
            apart = np.maximum(apart, sensitivity.get(f"per_step/{name}", 0))
        spread[kind(name)] = np.maximum(spread.get(kind(name), 0), apart)
    return {k: allow(np.maximum.accumulate(s)) for k, s in spread.items()}


def cases():
    for name in SCENARIOS:
        yield pytest.param((name, torch.float32), id=name)
        yield pytest.param((name, torch.float64), id=f"{name}-float64", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=cases())
def case(request):
    """Our run, its twin, and the reference's own sensitivity where it was recorded."""
    scenario, dtype = request.param
    _, meta = golden.load(f"e2e/{scenario}.npz")
    if meta["error"]:
        pytest.skip(f"the reference itself stopped: {meta['error']}")
    return (
        follow(scenario, dtype, 0.0),
        follow(scenario, torch.float32, NOISE),
        SENSITIVITY.get(scenario, {}),
    )


def test_every_step(case):
    ours, twin, sensitivity = case
    expected = recorded(ours)
    assert expected.keys() == ours.series.keys()
    allowed = tolerances(ours.series, twin.series, sensitivity)
    if ours.spec["init"] == "w":  # no gradient has passed yet
        allowed["loss"][0] = max(TIGHT, allowed["loss"][0] / 10)
    # A loss is known no better than what it is computed from.
    pairs = zip(ours.outputs, twin.outputs, strict=True)
    allowed["loss"] = np.maximum(allowed["loss"], [(a - b).norm() / a.norm() for a, b in pairs])
    # Which of a few images come out right is exact, or by chance once the loss has drifted.
    exact = np.where(allowed["loss"] < 1e-2, TIGHT, np.inf)
    for name, values in expected.items():
        error = relative(ours.series[name], values)
        bound = exact if name.endswith("_acc") else allowed[kind(name)]
        assert (error <= bound).all(), f"{name}: {error}, allowed {bound}"


def test_final_weights(case):
    ours, twin, _ = case
    arrays, allowed = ours.arrays, tolerances(ours.series, twin.series)
    for name, norm, total in zip(ours.names, arrays["final/l2"], arrays["final/sum"], strict=True):
        tensor, bound = ours.state[ours.names[name]].double(), allowed[kind(name)][-1]
        assert relative(tensor.norm().item(), norm) <= bound, name
        # moving a vector by e |v| changes its sum by at most e |v| sqrt(n)
        assert abs(tensor.sum() - total) <= bound * norm * math.sqrt(tensor.numel()), name
    for key in [key for key in arrays if key.startswith("final_full/")]:
        name = ours.names[key.removeprefix("final_full/")]
        theirs, tensor = to_torch(arrays[key]), ours.state[name]
        spread = (twin.state[name] - tensor).norm() / theirs.norm()
        assert (tensor - theirs).norm() / theirs.norm() <= allow(spread.item()), name


def test_how_far_each_variable_moved(case):
    ours, twin, _ = case
    arrays, allowed = ours.arrays, tolerances(ours.moved, twin.moved)
    if "final/delta_l2" not in arrays:
        pytest.skip("recorded for runs from given weights only")
    lengths = zip(ours.names, arrays["final/l2"], arrays["final/delta_l2"], strict=True)
    for name, norm, length in lengths:
        error = abs(ours.moved[name] - length)
        # TensorFlow rounds the weights to float32 at each step
        assert error <= allowed[kind(name)] * length + 1e-7 * norm, name
        assert length or not ours.moved[name], f"{name} should not move"


def test_final_evaluation(case):
    ours, twin, sensitivity = case
    arrays, spec = ours.arrays, ours.spec
    if "final_eval/logits" not in arrays:
        pytest.skip("pretraining without a linear layer beside it is not evaluated")
    logits, scale = arrays["final_eval/logits"], np.abs(arrays["final_eval/logits"]).max()
    spread = np.abs(twin.logits - ours.logits).max() / scale
    spread = max(spread, sensitivity.get("final_eval/logits", 0))
    assert np.abs(ours.logits - logits).max() / scale <= allow(spread)
    bound = tolerances(ours.series, twin.series)["kernel"][-1]
    assert relative(ours.decay, arrays["final_eval/eval/regularization_loss"]) <= bound

    labels = labels_of(f"e2e/{spec['data']}/eval", spec["num_eval"], spec["classes"])
    np.testing.assert_array_equal(labels, arrays["final_eval/labels"])
    metrics = classification_metrics(torch.from_numpy(logits), labels)
    assert metrics["top1"] == pytest.approx(arrays["final_eval/eval/label_top_1_accuracy"])
    if "top5" in metrics:  # more than five classes
        assert metrics["top5"] == pytest.approx(arrays["final_eval/eval/label_top_5_accuracy"])


# ------------------------------------------------------------------- where ours means to differ
def new_classifier(ours):
    """The project's own for this scenario, and the scenario's first images and labels."""
    model, classes = copy.deepcopy(ours.model), ours.spec["classes"]
    classifier = Classifier(model.encoder, classes, model.head, model.selector).to(ours.dtype)
    scope = f"e2e/{ours.spec['data']}/batch0"
    B, S = ours.flags["train_batch_size"], ours.flags["image_size"]
    images = images_of(scope, ["/v0"], B, S).to(ours.dtype)
    return classifier, images, labels_of(scope, B, classes)


def test_the_linear_layer_starts_at_zero(case):
    """reference.md 9: the first loss is that of chance; the reference keeps what it restored."""
    ours = case[0]
    if not ours.flags["zero_init_logits_layer"]:
        pytest.skip("the scenario does not ask for it")
    classifier, images, labels = new_classifier(ours)
    with torch.no_grad():
        loss = F.cross_entropy(classifier.eval()(images), labels).item()
    assert loss == pytest.approx(math.log(ours.spec["classes"]), abs=1e-6)
    assert abs(ours.arrays["per_step/train/supervised_loss"][0] - loss) > 1e-3


def test_frozen_blocks_stay_as_they_are(case):
    """reference.md 9: statistics of frozen blocks do not move; those of the reference do."""
    ours = case[0]
    if ours.flags["fine_tune_after_block"] == -1:
        pytest.skip("the scenario freezes nothing")
    classifier, images, _ = new_classifier(ours)
    freeze(classifier, ours.flags["fine_tune_after_block"])
    frozen = [m for part in classifier.frozen for m in part.modules() if isinstance(m, BatchNorm)]
    before = [m.running_mean.clone() for m in frozen]
    with torch.no_grad():
        classifier.train()(images)
    assert frozen
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(frozen, before, strict=True))
    # the run above follows the reference, and test_every_step that it does
    moved = {ours.names[name]: float(length[0]) for name, length in ours.moved.items()}
    encoder = classifier.encoder.named_modules()
    assert all(moved[f"encoder.{name}.running_mean"] > 0 for name, m in encoder if m in frozen)


def test_adam_is_kerass():
    """Keras' Adam by hand, with gradients as small as its epsilon and a changing rate."""
    rng = np.random.default_rng(0)
    w, m, v = rng.normal(size=(3, 4)), 0.0, 0.0
    parameter = nn.Parameter(torch.tensor(w))
    optimizer = KerasAdam([{"params": [parameter], "weight_decay": 1e-7}])
    for t, lr in enumerate((0.1, 0.02, 0.3), start=1):
        gradient = 1e-7 * rng.normal(size=w.shape)
        g = gradient + 1e-7 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        parameter.grad = torch.tensor(gradient)
        set_learning_rate(optimizer, lr)
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-12)
