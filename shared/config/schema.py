"""The one schema of all commands: frozen dataclasses, read from a recipe (YAML) and flags.

The defaults are the paper's (ImageNet, ResNet-50); a recipe in ``configs/`` names what differs, and
flags win over the recipe. Without ``--config`` the embedded recipe ``configs/digits.yaml`` is used.
This file imports neither torch nor the configuration library: the command line answers at once.
"""

import hashlib
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from shared.config.checks import require, require_bounded, require_one_of, require_seed
from shared.config.conditions import unmet
from shared.config.labelset import LabelSet
from shared.config.methods import FORCEABLE, METHODS, ancestors, made_by
from shared.config.pretext import (
    TASK_SECTIONS,
    TASKS,
    Attention,
    CodeBook,
    Colour,
    Decoupling,
    Exemplar,
    Infomax,
    Inpainting,
    Instances,
    Jigsaw,
    MultiTask,
    Patches,
    Permutation,
    Prototypes,
    TaskKind,
    Transitive,
)
from shared.config.sections import (
    Assess,
    Augmentation,
    Classical,
    Data,
    Distill,
    Finetune,
    Linear,
    Model,
    Pretrain,
    Supervised,
    Training,
)

RECIPES = Path(__file__).parents[2] / "configs"
VARIANTS = "variants"  # in a run's folder: artifacts of a table with other options
WISHES = {"force": "", "plan": False, "table": None, "budget": None}  # for one call
RENAMED = {"data.antialias": "augment.antialias"}  # new name -> old one, which is still read


@dataclass(frozen=True)
class Config:
    """Run: what is trained, on which labels, and where the results go.

    Args:
        run: name of the run; its artifacts lie in <output>/<run>.
        output: folder of all runs.
        labels: labeled training images: <x>pct, <n>perclass, <n>random, <n>suggested by stage 1, a
            text file of names, or a CSV file: file,label.
        suggested_by: run or artifact folder of the pretraining that suggests; unset: this run's.
        seed: of the label draw and of stages 2 and 3.
        method: which row of the table stages.finetune makes; the pipeline makes all of them.
        force: stages to redo, with all that is made from them, separated by commas
        precision: bf16 is mixed precision, no is float32; auto takes bf16 where it is fast.
        channels_last: memory layout of images; auto uses it on CPUs and with mixed precision.
        checkpoint_activations: keep only what enters each block of the trained network, and compute
            the rest again: the same result in less memory, slower.
        compile: torch.compile for the network that is trained; its first steps take minutes.
        threads: CPU threads of each process; 0 leaves the choice to torch.
        tracker: also log to this experiment tracker.
        plan: only measure for half a minute what each stage would take: steps, FLOPs, time, memory,
            disk (pipeline.py and stages.pretrain).
        budget: about how long pipeline.py may take in all on own images: 30min, 1.5h, 90s.
        table: pipeline.py only fills this grid of runs: a name in configs/tables, or a YAML file.
        data: the images.
        augment: the random views of an image.
        model: the networks of stages 1 and 2.
        pretrain: stage 1.
        instances: of stage 1 with pretrain.task=instances.
        patches: of stage 1 with pretrain.task=patches.
        jigsaw: of stage 1 with pretrain.task=jigsaw.
        permutation: of stage 1 with pretrain.task=permutation.
        colour: of stage 1 with pretrain.task=colour.
        inpainting: of stage 1 with pretrain.task=inpainting.
        exemplar: of stage 1 with pretrain.task=exemplar.
        multi_task: of stage 1 with pretrain.task=multi-task.
        decoupling: of stage 1 with pretrain.task=decoupling.
        transitive: of stage 1 with pretrain.task=transitive.
        prototypes: of stage 1 with pretrain.loss=prototypes.
        infomax: of stage 1 with pretrain.loss=infomax.
        attention: of stage 1 with pretrain.contextualisation=attention.
        code_book: of stage 1 with pretrain.quantisation=gumbel.
        finetune: stage 2.
        linear: linear evaluation.
        supervised: supervised training from scratch.
        classical: classifiers of scikit-learn.
        distill: stage 3.
        assess: optional stage 4.
    """

    run: str = "default"
    output: str = "runs"
    labels: str = "1pct"
    suggested_by: str | None = None
    seed: int = 0
    method: str = "finetune"
    force: str = ""
    precision: Literal["auto", "no", "bf16"] = "auto"
    channels_last: Literal["auto", "yes", "no"] = "auto"
    checkpoint_activations: bool = False
    compile: bool = False
    threads: int = 0
    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    plan: bool = False
    budget: str | None = None
    table: str | None = None
    data: Data = field(default_factory=Data)
    augment: Augmentation = field(default_factory=Augmentation)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    instances: Instances = field(default_factory=Instances)
    patches: Patches = field(default_factory=Patches)
    jigsaw: Jigsaw = field(default_factory=Jigsaw)
    permutation: Permutation = field(default_factory=Permutation)
    colour: Colour = field(default_factory=Colour)
    inpainting: Inpainting = field(default_factory=Inpainting)
    exemplar: Exemplar = field(default_factory=Exemplar)
    multi_task: MultiTask = field(default_factory=MultiTask)
    decoupling: Decoupling = field(default_factory=Decoupling)
    transitive: Transitive = field(default_factory=Transitive)
    prototypes: Prototypes = field(default_factory=Prototypes)
    infomax: Infomax = field(default_factory=Infomax)
    attention: Attention = field(default_factory=Attention)
    code_book: CodeBook = field(default_factory=CodeBook)
    finetune: Finetune = field(default_factory=Finetune)
    linear: Linear = field(default_factory=Linear)
    supervised: Supervised = field(default_factory=Supervised)
    classical: Classical = field(default_factory=Classical)
    distill: Distill = field(default_factory=Distill)
    assess: Assess = field(default_factory=Assess)

    def __post_init__(self) -> None:
        require_bounded(self)
        for name in SECTIONS:
            require_bounded(getattr(self, name), f"{name}.")
        require(
            re.fullmatch(r"[^\W_][\w.-]*", self.run) is not None,
            "run",
            self.run,
            "letters, digits, '.', '_' or '-', with a letter or digit first",
        )
        _ = self.label_set  # parsed once, here
        require_one_of(made_by("finetune"), "method", self.method)
        require_seed("seed", self.seed)
        require(self.threads >= 0, "threads", self.threads, "0 or more")
        seconds = self.budget_seconds
        require(seconds is None or seconds > 0, "budget", self.budget, "like 30min, 1.5h or 90s")
        for stage in filter(None, self.force.split(",")):
            require_one_of((*FORCEABLE, "all"), "force", stage)
        self._require_task()
        for stage in (self.finetune, self.linear, self.supervised, self.classical):
            layers = self.head_layers
            if stage.from_layer and layers and not stage.init:  # else the artifact's head decides
                require(
                    stage.from_layer <= layers,
                    f"{stage.section}.from_layer",
                    stage.from_layer,
                    f"0 to {layers} (model.head_layers)",
                )

    def _require_task(self) -> None:
        """ValueError where images or batch are too small for a task, or an artifact is missing."""
        size, batch = self.data.image_size, self.pretrain.batch_size
        for kind in map(self.task_kind, self.task_weights):
            allowed = f"at least {kind.smallest} pixels with pretrain.task={kind.name}"
            require(size >= kind.smallest, "data.image_size", size, allowed)
            memory = " without pretrain.memory" * (kind.name == "contrastive")
            allowed = f"{kind.batch} or more{memory}, because one image has no negatives"
            require(batch >= kind.batch, "pretrain.batch_size", batch, allowed)
            require(
                kind.views == 1 or self.pretrain.augmentation != "none",
                "pretrain.augmentation",
                "none",
                f"full or crop with pretrain.task={kind.name}, whose views would be alike",
            )
        out, groups = self.model.head_out, self.code_book.groups
        quantised = self.pretrain.quantisation != "none"
        allowed = f"a divisor of model.head_out={out}"
        require(not quantised or out % groups == 0, "code_book.groups", groups, allowed)
        require(
            "transitive" not in self.tasks or bool(self.transitive.init),
            "transitive.init",
            self.transitive.init,
            "the run or artifact folder of a first pretraining with pretrain.task=transitive",
        )

    @property
    def task_sections(self) -> set[str]:
        """The sections of options that stage 1 reads, of those of single tasks."""
        return {section for section in TASK_SECTIONS if not unmet(self, section)}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The pretext task of stage 1, and those that it consists of."""
        chosen = [self.pretrain.task]
        if chosen == ["multi-task"]:
            chosen += self.multi_task.weights
        return tuple(dict.fromkeys(chosen + [used for task in chosen for used in TASKS[task].uses]))

    @property
    def task_weights(self) -> dict[str, float]:
        """What stage 1 learns: each task with the weight of its loss."""
        if self.pretrain.task != "multi-task":
            return {self.pretrain.task: 1.0}
        return {task: weight for task, weight in self.multi_task.weights.items() if weight}

    @property
    def head_layers(self) -> int:
        """Layers of the projection head that stage 1 leaves: none where no task answers by it."""
        return self.model.head_layers if self.task_kind().embeds else 0

    def task_kind(self, name: str | None = None) -> TaskKind:
        """The record of a pretext task, by default of the chosen one, with its options.

        Of several tasks: as many views as the greediest part wants, of which each part takes the
        first ones; full augmentation where a part usually has it.
        """
        kind, cfg = TASKS[name or self.pretrain.task], self.pretrain
        if kind.name == "multi-task":
            parts = [self.task_kind(part) for part in self.task_weights]
            full = any(part.augmentation == "full" for part in parts)
            return replace(
                kind,
                views=max(part.views for part in parts),
                inputs=sum(part.inputs for part in parts),
                embeds=any(part.embeds for part in parts),
                augmentation="full" if full else "crop",
                smallest=max(part.smallest for part in parts),
                batch=max(part.batch for part in parts),
            )
        if kind.name == "contrastive":  # whose head is then the task's own
            own_head = cfg.loss == "infomax" or cfg.contextualisation != "none"
            kind = replace(kind, embeds=not own_head)
        if kind.name == "contrastive" and cfg.memory:  # as MoCo, the other view is a key
            return replace(kind, batch=1, inputs=1 if cfg.negatives == "memory" else 2)
        views = getattr(getattr(self, kind.section, None), "views", None)
        return replace(kind, views=views, inputs=views) if views else kind

    def inputs_of(self, method: str) -> float:
        """Inputs of the trained network for each image, in one update, in whole images."""
        return self.task_kind().inputs if method == "pretrain" else 1

    def passes_of(self, method: str) -> int:
        """Cost of one image in an update, in forward passes of the trained network.

        A backward pass costs as much as two forward passes. With a memory the averaged network
        embeds as many views as the trained one. In parts, each input is embedded twice.
        """
        cfg, inputs = self.training_of(method), self.inputs_of(method)
        in_parts = cfg.images_at_once < cfg.batch_size
        keys = (
            "contrastive" in self.task_weights and method == "pretrain" and self.pretrain.memory > 0
        )
        return math.ceil(inputs * (3 + in_parts) + keys * self.task_kind("contrastive").inputs)

    @property
    def folder(self) -> Path:
        """``<output>/<run>``, which holds one folder per stage."""
        return Path(self.output) / self.run

    @property
    def run_folder(self) -> Path:
        """`folder`; for what a table varies, in ``<run>/variants/<what differs>``, ``<run>``."""
        return self.folder.parent.parent if self.folder.parent.name == VARIANTS else self.folder

    @property
    def budget_seconds(self) -> float | None:
        """``budget`` in seconds; 0 where it is none."""
        if self.budget is None:
            return None
        number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|m|h)", self.budget)
        return (
            float(number[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[number[2]] if number else 0
        )

    @property
    def suggesting(self) -> Path:
        """The pretraining by whose features images are suggested: its artifact folder."""
        if not self.suggested_by:
            return self.folder_of("pretrain")
        return pretraining_in(Path(self.suggested_by))

    @property
    def suggests_itself(self) -> bool:
        """Whether the run's own pretraining suggests."""
        return self.suggesting.resolve() == self.folder_of("pretrain").resolve()

    def _choice(self, tag: str) -> Path:
        """The file in the run's folder that names the suggested images."""
        run, source = (Path(os.path.abspath(p)) for p in (self.run_folder, self.suggesting.parent))
        name = os.fsencode(source.name)[:120].decode(errors="ignore")
        by = "" if source == run else f"-by-{name}"
        if run not in (source, *source.parents):  # others may be called so too
            place = os.fsencode(os.path.relpath(source, run))  # both may be moved together
            by += f"-{hashlib.sha256(place).hexdigest()[:8]}"
        return self.run_folder / f"{tag}-seed{self.seed}{by}.json"

    @cached_property
    def label_set(self) -> LabelSet:
        """``labels``, parsed, with the columns of a CSV file or the place of suggested images."""
        columns = {"image_column": self.data.image_column, "label_column": self.data.label_column}
        labels = LabelSet.parse(self.labels)
        if labels.suggested:
            return replace(labels, choice=self._choice(labels.tag))
        return replace(labels, **columns) if labels.csv_file else labels

    def folder_of(self, stage: str) -> Path:
        """The folder of a method's artifact or of the assessment, for these labels and this seed.

        Pretraining uses no labels: its folder is the same for all of them.
        """
        name = stage if stage == "pretrain" else self.label_set.folder(stage, self.seed)
        return self.folder / name

    def training_of(self, method: str) -> Training:
        """The section that a method's training reads."""
        return getattr(self, METHODS[method].section)

    def encoder_of(self, method: str) -> str:
        """The encoder that a method trains."""
        return self.option(METHODS[method].network)

    def asks_for(self, method: str) -> bool:
        """Whether a run of the pipeline makes the method's artifact."""
        option = METHODS[method].asked_by
        return not option or bool(self.option(option)) or method in self.distill.teachers

    def parents_of(self, method: str) -> tuple[str, ...]:
        """The methods whose artifacts this one starts from; none where it starts from scratch.

        Of those that it may start from it is the last one that this run makes: the self-distilled
        teacher before the fine-tuned one. Only a student has several: its teachers.
        """
        parents = [parent for parent in METHODS[method].made_from if self.asks_for(parent)]
        return self.distill.teachers if parents[-1:] == ["finetune"] else tuple(parents[-1:])

    def given_teachers(self, method: str) -> tuple[str, ...]:
        """The artifact folders that are named to teach a method, in place of `parents_of`."""
        return self.distill.teacher_folders if self.parents_of(method) != ("self-distill",) else ()

    def ancestors_of(self, method: str) -> tuple[str, ...]:
        """`ancestors`, with the teachers of this run and their own."""
        every = set(ancestors(method))
        if "finetune" in every:
            for teacher in self.distill.teachers:
                every |= {teacher, *ancestors(teacher)}
        return tuple(name for name in METHODS if name in every)

    def forces(self, stage: str) -> bool:
        """Whether ``--force`` asks for the stage, or for one that it is made from."""
        return not {"all", stage, *self.ancestors_of(stage)}.isdisjoint(self.force.split(","))

    def to_go_on(self, stage: str) -> str:
        """What goes on after a stop: the same command, with ``--force`` for what comes later alone.

        To force the stage again would throw its checkpoint away.
        """
        later = FORCEABLE[FORCEABLE.index(stage) + 1 :]
        forced = ",".join(name for name in later if self.forces(name))
        change = f", now with --force {forced}," if forced else ", now without --force,"
        return "run the same command" + (change if self.force else "")

    def option(self, name: str) -> Any:
        """The value of an option of a section, such as ``distill.student``."""
        section, _, key = name.partition(".")
        return getattr(getattr(self, section), key)


def pretraining_in(folder: Path) -> Path:
    """The artifact of stage 1 that a folder is, or that lies in the folder of its run."""
    own = folder / "pretrain"
    artifact = folder.name == "pretrain" or (folder / "meta.json").exists()
    return own if own.is_dir() or not artifact else folder


def hashed_settings(section: Any, prefix: str = "") -> dict[str, Any]:
    """Flat ``{"pretrain.temperature": 1.0, ...}`` of the fields that decide what is computed."""
    return {
        f"{prefix}.{f.name}" if prefix else f.name: getattr(section, f.name)
        for f in fields(section)
        if f.metadata.get("hashed", True)
    }


def defaults() -> dict[str, Any]:
    """``hashed_settings`` of all sections with nothing set."""
    config, settings = Config(), {}
    for name in SECTIONS:
        settings |= hashed_settings(getattr(config, name), name)
    return settings


def dump(config: Config) -> str:
    """The resolved configuration as YAML, readable by ``--config``."""
    return as_yaml(without_other_tasks(config, asdict(config)) | WISHES)


def without_other_tasks(config: Config, plain: dict[str, Any]) -> dict[str, Any]:
    """Options without the sections of tasks that are not chosen, which are at their defaults."""
    others = TASK_SECTIONS.keys() - config.task_sections
    return {name: value for name, value in plain.items() if name not in others}


def as_yaml(plain: dict[str, Any]) -> str:
    """Options as YAML, readable by ``--config``."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(listed(plain), sort_keys=False)


SECTIONS = tuple(f.name for f in fields(Config) if is_dataclass(f.default_factory))
