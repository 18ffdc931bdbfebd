"""The methods: stage 1, and every classifier that the tables compare. One row each.

From a row follow: the values of ``--method`` and ``--force`` and what a forced stage redoes, the
order in which the pipeline runs, titles, colours and markers, the settings that an artifact depends
on, and the lines of ``--plan``. A new row to compare with is one line here, and its stage.
"""

from dataclasses import dataclass
from typing import Literal

from shared.config.pretext import TASK_SECTIONS

# at most that rows of scikit-learn are fitted to: a support vector machine compares every two
CLASSES_FITTED = 100


@dataclass(frozen=True)
class Method:
    """One kind of artifact.

    Attributes:
        name: as options, folders and results name it.
        title: its row in a table.
        short: its name in a picture.
        color: of its lines, ``#rrggbb``; told apart by colour-blind readers too.
        marker: of its points, as matplotlib names it.
        stage: the module in ``stages`` that makes it: ``stages.<stage>.run(config, accelerator,
            name)``.
        section: the section of the configuration that its training reads.
        made_from: the methods whose artifact it may start from, usual one first; empty: from none.
        depends: sections and options that its artifact depends on, besides those of what it is
            made from.
        independent: options of those that it does not depend on.
        network: the option that names its encoder; empty: a model that is no network, of which the
            predictions are saved and not the model.
        weights: the option that asks to start that encoder from published weights, if there is one.
        fitted: whether it is fitted at once, as by scikit-learn; others are trained in steps, by a
            schedule.
        all_images: whether it trains on all images, or only on those with a label.
        frozen: whether it trains the linear layer alone.
        copies_teacher: whether its network is that of its teacher, with the layers of the
            projection head that the teacher kept.
        own_input: whether its images are of the size and normalisation that its network was
            published for, and not of those of the run.
        asked_by: the option that asks for it; empty: every run of the pipeline makes it.
        role: ``reference``, whose accuracy says what the labels are worth; ``deployed``, the model
            that a user takes away.
    """

    name: str
    title: str
    short: str
    color: str
    marker: str
    stage: str
    section: str
    made_from: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    independent: tuple[str, ...] = ()
    network: str = "model.encoder"
    weights: str = ""
    fitted: bool = False
    all_images: bool = False
    frozen: bool = False
    copies_teacher: bool = False
    own_input: bool = False
    asked_by: str = ""
    role: Literal["", "reference", "deployed"] = ""

    @property
    def saved(self) -> bool:
        """Whether there is a network to load and to deploy, and not the predictions alone."""
        return bool(self.network)


def _on_pixels(
    name: str, title: str, short: str, color: str, marker: str, all_images: bool = False
) -> Method:
    """A row of scikit-learn on what can be computed from an image without training."""
    return Method(
        name,
        title,
        short,
        color,
        marker,
        stage="classical",
        section="classical",
        depends=("data", "classical"),
        independent=("classical.from_layer", "classical.self_training"),
        network="",
        fitted=True,
        all_images=all_images,
        asked_by="classical.enabled",
    )


# In the order in which they run, which is that of the tables' rows.
METHODS = {
    method.name: method
    for method in (
        Method(
            "pretrain",
            "pretraining",
            "pretraining",
            "#24292f",
            "o",
            stage="pretrain",
            section="pretrain",
            depends=("data", "augment", "model", "pretrain", *TASK_SECTIONS),
            weights="model.pretrained",
            all_images=True,
        ),
        _on_pixels(
            "pixels-svm", "support vector machine on pixels", "SVM on pixels", "#8A68C0", "<"
        ),
        _on_pixels("pixels-forest", "random forest on pixels", "forest on pixels", "#4D7C0F", ">"),
        _on_pixels(
            "pixels-spreading", "label spreading on pixels", "spreading", "#B9518A", "p", True
        ),
        _on_pixels(
            "gradients-svm",
            "support vector machine on gradients and colours",
            "SVM on gradients",
            "#A0682E",
            "X",
        ),
        Method(
            "supervised",
            "supervised from scratch",
            "supervised",
            "#767676",
            "o",
            stage="finetune",
            section="supervised",
            depends=("data", "augment", "model", "supervised"),
            role="reference",
        ),
        Method(
            "supervised-student",
            "student's network, labels alone",
            "student, labels alone",
            "#B97A00",
            "v",
            stage="finetune",
            section="supervised",
            depends=("data", "augment", "model", "supervised", "distill.student"),
            independent=("model.encoder",),
            network="distill.student",
        ),
        Method(
            "published",
            "logistic regression on published weights",
            "published weights",
            "#C4475B",
            "*",
            stage="classical",
            section="classical",
            depends=("data", "classical"),
            independent=(
                "classical.from_layer",
                "classical.self_training",
                "classical.pixel_images",
            ),
            network="classical.published",
            fitted=True,
            frozen=True,
            own_input=True,
            asked_by="classical.published",
        ),
        Method(
            "linear",
            "linear evaluation (frozen encoder)",
            "linear",
            "#009E73",
            "^",
            stage="finetune",
            section="linear",
            made_from=("pretrain",),
            depends=("linear",),
            frozen=True,
        ),
        Method(
            "features-logistic",
            "logistic regression on the frozen features",
            "logistic",
            "#1B7F8C",
            "h",
            stage="classical",
            section="classical",
            made_from=("pretrain",),
            depends=("classical",),
            independent=("classical.pixel_images",),
            fitted=True,
            frozen=True,
            asked_by="classical.enabled",
        ),
        Method(
            "features-neighbours",
            "nearest neighbours on the frozen features",
            "neighbours",
            "#857236",
            "d",
            stage="classical",
            section="classical",
            made_from=("pretrain",),
            depends=("classical",),
            independent=("classical.self_training", "classical.pixel_images"),
            network="",
            fitted=True,
            frozen=True,
            asked_by="classical.neighbours",
        ),
        Method(
            "finetune",
            "fine-tuned teacher",
            "fine-tuned",
            "#0072B2",
            "s",
            stage="finetune",
            section="finetune",
            made_from=("pretrain",),
            depends=("finetune",),
        ),
        Method(
            "self-distill",
            "self-distilled teacher",
            "self-distilled",
            "#C0609A",
            "P",
            stage="distill",
            section="distill",
            made_from=("finetune",),
            depends=("distill",),
            independent=(
                "distill.student",
                "distill.student_pretrained",
                "distill.temperature",
                "distill.self_first",
            ),
            all_images=True,
            copies_teacher=True,
            asked_by="distill.self_first",
        ),
        Method(
            "distill",
            "distilled student",
            "distilled",
            "#D55E00",
            "D",
            stage="distill",
            section="distill",
            made_from=("finetune", "self-distill"),
            depends=("distill",),
            network="distill.student",
            weights="distill.student_pretrained",
            all_images=True,
            role="deployed",
        ),
    )
}
CLASSIFIERS = {name: method for name, method in METHODS.items() if name != "pretrain"}
REFERENCE = next(name for name, method in METHODS.items() if method.role == "reference")
DEPLOYED = next(name for name, method in METHODS.items() if method.role == "deployed")
TEACHERS = ("finetune", "features-logistic")  # of a run's own classifiers; the usual one first
# what --force may name, in the order in which it runs
FORCEABLE = (*METHODS, "assess")


def made_by(stage: str) -> list[str]:
    """The names of the methods that a stage makes."""
    return [method.name for method in METHODS.values() if method.stage == stage]


def method_of(stage: str, name: str) -> Method:
    """The row of a method that a stage makes.

    Raises:
        ValueError: where another stage makes it, or none.
    """
    if name not in made_by(stage):
        raise ValueError(f"stages.{stage} makes {', '.join(made_by(stage))}, not {name!r}")
    return METHODS[name]


def ancestors(name: str) -> tuple[str, ...]:
    """The methods that an artifact may be made from, at any remove, in the order of the table."""
    parents = METHODS[name].made_from if name in METHODS else ()
    every = {*parents, *(older for parent in parents for older in ancestors(parent))}
    return tuple(method for method in METHODS if method in every)


def depends_on(name: str) -> tuple[str, ...]:
    """Sections and options that a method's artifact depends on, with those of its ancestors."""
    methods = (*ancestors(name), name)
    return tuple(dict.fromkeys(key for method in methods for key in METHODS[method].depends))
