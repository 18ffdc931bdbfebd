"""Pretext tasks by their names."""

from accelerate import Accelerator

from shared.config.schema import Config
from shared.pretext.code_book import Quantised
from shared.pretext.colour import Colour
from shared.pretext.contrastive import Contrastive
from shared.pretext.decoupling import Decoupling
from shared.pretext.exemplar import Exemplar
from shared.pretext.infomax import Infomax
from shared.pretext.inpainting import Inpainting
from shared.pretext.instances import Instances
from shared.pretext.jigsaw import Jigsaw
from shared.pretext.multi_task import MultiTask
from shared.pretext.patches import Patches
from shared.pretext.permutation import Permutation
from shared.pretext.prototypes import Prototypes
from shared.pretext.rotation import Rotation
from shared.pretext.task import Task
from shared.pretext.transitive import Transitive

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
        Exemplar,
        MultiTask,
        Decoupling,
        Transitive,
    )
}

# losses of the contrastive task that need layers of their own
LOSS_CLASSES: dict[str, type[Task]] = {"prototypes": Prototypes, "infomax": Infomax}


def make_task(config: Config, accelerator: Accelerator) -> Task:
    """The task that ``pretrain.task`` names; the contrastive one as its loss wants it."""
    name, tasks = config.pretrain.task, config.task_weights
    classes = dict(TASK_CLASSES)
    if config.pretrain.loss in LOSS_CLASSES:
        classes["contrastive"] = LOSS_CLASSES[config.pretrain.loss]
    elif config.pretrain.quantisation == "gumbel":
        classes["contrastive"] = Quantised
    parts = {part: classes[part](config, accelerator) for part in tasks}
    return parts[name] if name in parts else MultiTask(config, accelerator, parts)
