"""Tasks by name."""

from accelerate import Accelerator

from shared.config.command_line import load_config
from shared.pretext.build import LOSS_CLASSES, TASK_CLASSES, make_task
from shared.pretext.code_book import Quantised
from tests.support.pretext import VARIANTS, options_of


def test_each_name_makes_its_class():
    for variant in VARIANTS:
        config, _ = load_config(options_of(variant), "", "")
        task = make_task(config, Accelerator(cpu=True))
        usual = TASK_CLASSES[config.pretrain.task]
        if config.pretrain.quantisation == "gumbel":
            usual = Quantised
        assert type(task) is LOSS_CLASSES.get(config.pretrain.loss, usual)
        assert task.facts
