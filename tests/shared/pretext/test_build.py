"""Tasks by name."""

from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.pretext.build import TASK_CLASSES, make_task
from shared.pretext.prototypes import Prototypes
from tests.support.pretext import VARIANTS, options_of


def test_each_name_makes_its_class():
    for variant in VARIANTS:
        config, _ = load_config(options_of(variant), "", "")
        task = make_task(config, Accelerator(cpu=True))
        losses = {"prototypes": Prototypes}  # a loss that needs layers of its own
        usual = TASK_CLASSES[config.pretrain.task]
        assert type(task) is losses.get(config.pretrain.loss, usual)
        assert task.facts
