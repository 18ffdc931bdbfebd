"""Several tasks at once: the sum and its gradient, what each part sees, and what is refused."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.config.command_line import load_config
from shared.config.pretext import Instances, MultiTask
from shared.config.schema import Config
from shared.config.sections import Data, Model, Pretrain
from shared.data.batches import Batch
from shared.networks.build import build_contrastive, network_meta
from shared.pretext.build import make_task
from shared.pretext.network import PretextModel, as_tuple, heads_of, kept_part
from shared.pretext.task import Answer, Task
from shared.runtime.randomness import generator
from shared.training.stage import options_of
from stages import pretrain
from tests.support.pretext import SMALL, learn
from tests.support.sources import images
from tests.support.toy_run import TINY

B, N = 6, 20


def config(task: str, **sections) -> Config:
    model = Model(encoder="simclr_resnet8_1x_sk0", head_width=8, head_out=4)
    chosen = Pretrain(task=task, batch_size=B)
    return Config(data=Data(image_size=8), model=model, pretrain=chosen, **sections)


def network_for(task: Task) -> nn.Module:
    """In eval mode: without statistics of a batch."""
    torch.manual_seed(0)
    cfg = task.config
    meta = network_meta(cfg.model, cfg.data, cfg.head_layers)
    return task.network(build_contrastive(meta)).eval()


def answer(task: Task, network: nn.Module) -> Answer:
    """Of one step."""
    torch.manual_seed(1)
    task.start(network, images([0] * N))
    shown = torch.rand(task.views * B, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    batch = Batch(shown, torch.arange(B), None, task.draw(generator("a"), B))
    targets = task.targets(batch)
    return task.loss(as_tuple(network(*task.inputs(batch))), targets)


def gradient(loss: Tensor, network: nn.Module) -> Tensor:
    weights = list(kept_part(network).encoder.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def test_the_gradient_of_the_sum_is_the_sum_of_the_gradients():
    weights = {"rotation": 1, "instances": 0.25, "contrastive": 2}
    several = MultiTask("rotation,instances:0.25,contrastive:2")
    options = Instances(negatives=5)
    task = make_task(
        config("multi-task", multi_task=several, instances=options), Accelerator(cpu=True)
    )
    network = network_for(task)
    losses, by_hand = torch.zeros(()), torch.zeros(())
    for (name, weight), head in zip(weights.items(), heads_of(network), strict=True):
        own = {"instances": options} if name == "instances" else {}
        part = make_task(config(name, **own), Accelerator(cpu=True))
        loss = answer(part, PretextModel(kept_part(network), [head])).loss
        losses = losses + weight * loss.detach()
        by_hand = by_hand + weight * gradient(loss, network)
    whole = answer(task, network)
    assert torch.allclose(whole.loss, losses)
    assert torch.allclose(gradient(whole.loss, network), by_hand, rtol=1e-4, atol=1e-5)
    chances = [weights[name] * part.chance for name, part in task.parts.items()]
    assert task.chance == pytest.approx(sum(chances))
    metrics = whole.metrics()
    assert metrics.keys() > {"rotation_top1", "rotation_top1_of_chance", "contrastive_top1"}
    assert sum(weights[name] * metrics[f"{name}_loss"] for name in weights) == whole.loss


@pytest.fixture
def fresh_accelerator():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def weights_of(output, *options: str):
    arguments = [*TINY, *SMALL, f"--output={output}", "--pretrain.steps=2", *options]
    assert pretrain.main([*arguments, "--precision=auto"]) == 0
    return load_file(output / "digits/pretrain/model.safetensors")


@pytest.mark.parametrize(
    ("without", "tasks"),
    [
        (["--pretrain.task=rotation"], "rotation"),
        (["--pretrain.task=rotation"], "contrastive:0,rotation:1"),
        (["--pretrain.task=contrastive"], "contrastive:1,rotation:0,exemplar:0.0"),
        (
            ["--pretrain.task=multi-task", "--multi_task.tasks=rotation:0.5,contrastive"],
            "rotation:0.5,instances:0,contrastive",
        ),
    ],
)
def test_a_part_of_weight_0_changes_no_bit(without, tasks, tmp_path, fresh_accelerator):
    plain = weights_of(tmp_path / "a", *without)
    other = weights_of(tmp_path / "b", "--pretrain.task=multi-task", f"--multi_task.tasks={tasks}")
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_each_part_sees_the_first_views_that_it_wants_and_what_it_drew():
    options = {"instances": Instances(negatives=5)}
    parts = MultiTask("instances,rotation,exemplar")
    task = make_task(config("multi-task", multi_task=parts, **options), Accelerator(cpu=True))
    assert task.views == 8
    assert task.augmentation == task.config.augment  # full, which exemplar usually has
    task.start(network_for(task), images([0] * N))
    shown = torch.rand(8 * B, 3, 8, 8)
    drawn = task.draw(generator("a"), B)
    batch = Batch(shown, torch.arange(B), None, drawn)
    instances, rotations, exemplars = task.inputs(batch)
    assert torch.equal(instances, shown[:B])
    assert torch.equal(rotations[:B], shown[:B])
    assert (len(rotations), len(exemplars)) == (4 * B, 8 * B)
    ids, negatives, turns = task.targets(batch)
    assert (ids.shape, negatives.shape, turns.shape) == ((B,), (B, 5), (4 * B,))


def test_the_record_and_the_settings_are_those_of_the_parts():
    line = ["--pretrain.task=multi-task", "--instances.momentum=0.3", "--pretrain.batch_size=8"]
    cfg, _ = load_config([*line, "--multi_task.tasks=rotation:2,instances:0"], "", "")
    assert (cfg.head_layers, cfg.task_kind().views, cfg.passes_of("pretrain")) == (0, 1, 12)
    cfg, _ = load_config([*line, "--multi_task.tasks=rotation:2,instances:1"], "", "")
    assert (cfg.head_layers, cfg.task_kind().inputs, cfg.passes_of("pretrain")) == (3, 5, 15)
    settings = options_of(cfg, "pretrain")
    assert settings["instances.momentum"] == 0.3
    assert settings["multi_task.tasks"] == "rotation:2,instances:1"
    assert "exemplar.views" not in settings


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ("rotatoin:1", "got 'rotatoin'; did you mean 'rotation'?"),
        ("", "must be one of 'contrastive', "),
        ("rotation:1,,instances", "must be one of 'contrastive', "),
        ("rotation:1,rotation:0.5", "different tasks, so rotation only once"),
        ("rotation,multi-task:1", "tasks that can share a batch, so multi-task is none"),
        ("rotation:-1", "weights of 0 to 1,000,000, like rotation:0.5, got 'rotation:-1'"),
        ("rotation:nan", "like rotation:0.5, got 'rotation:nan'"),
        ("rotation:inf", "like rotation:0.5"),
        ("rotation:1e30", "like rotation:0.5"),
        ("rotation:1:2", "like rotation:0.5"),
        ("instances:", "like instances:0.5"),
        ("rotation:0,instances:0", "one part or more of a weight above 0"),
    ],
)
def test_what_is_no_sum_of_tasks_is_refused_in_one_line(tasks, line):
    with pytest.raises(ValueError, match=r"multi_task\.tasks must be") as error:
        MultiTask(tasks)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--multi_task.tasks=jigsow"], "multi_task.tasks must be one of"),
        (["--exemplar.views=3"], "exemplar.views=3 is an option of pretrain.task=exemplar"),
        (["--pretrain.batch_size=1"], "pretrain.batch_size must be 2 or more"),
        (["--pretrain.augmentation=none"], "full or crop with pretrain.task=contrastive"),
    ],
)
def test_what_does_not_fit_the_parts_is_refused(options, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        load_config(["--pretrain.task=multi-task", *options], "", "")
    assert line in capsys.readouterr().err


def test_it_learns(tmp_path):
    line = learn(
        tmp_path, "multi-task", "--multi_task.tasks=rotation,instances:0.5", "--pretrain.steps=50"
    )
    assert line["rotation_top1"] > 0.7  # chance 0.25
    assert line["instances_top1"] > 0.1  # chance 0.02
