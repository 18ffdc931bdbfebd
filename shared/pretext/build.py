"""Pretext tasks by their names."""

from accelerate import Accelerator

from shared.config.schema import Config
from shared.pretext.colour import Colour
from shared.pretext.contrastive import Contrastive
from shared.pretext.inpainting import Inpainting
from shared.pretext.instances import Instances
from shared.pretext.jigsaw import Jigsaw
from shared.pretext.patches import Patches
from shared.pretext.permutation import Permutation
from shared.pretext.rotation import Rotation
from shared.pretext.task import Task

TASK_CLASSES: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Contrastive,
        Rotation,
        Instances,
        Patches,
        Jigsaw,
        Permutation,
        Colour,
        Inpainting,
    )
}


def make_task(config: Config, accelerator: Accelerator) -> Task:
    """The task that ``pretrain.task`` names."""
    return TASK_CLASSES[config.pretrain.task](config, accelerator)
