"""The parts of an assessment: what measures each, what its numbers depend on, which are wanted."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from shared.config.schema import Config, hashed_settings
from shared.config.sections import ASSESSMENTS
from shared.runtime.errors import UserError
from stages.assess import classifier_parts, feature_parts, label_part
from stages.assess.inputs import Arrays, Inputs

# Each returns, in the main process, its value in an ``Assessment`` and its arrays.
PARTS: dict[str, Callable[[Inputs], tuple[Any, Arrays] | None]] = {
    "linear": feature_parts.linear,
    "neighbours": feature_parts.neighbours,
    "clusters": feature_parts.clusters,
    "map": feature_parts.map_,
    "classifiers": classifier_parts.classifiers,
    "corruptions": classifier_parts.corrupted,
    "ood": classifier_parts.out_of_distribution,
    "transfer": feature_parts.transfer,
    "baselines": feature_parts.baselines,
    "labels": label_part.labels,
}
OF_CLASSIFIERS = ("classifiers", "corruptions", "ood")  # the others measure features
WITHOUT_TEST = ("labels",)  # the others need test images


def settings_of_parts(inputs: Inputs) -> dict[str, str]:
    """For each part a hash of everything that its numbers depend on."""
    options, train, test = inputs.config.assess, inputs.splits.train, inputs.splits.test
    common = [
        hashed_settings(inputs.config.data, "data"),
        train.fingerprint,
        train.labels_fingerprint,
        test and test.fingerprint,
        test and test.labels_fingerprint,
        inputs.labels.hash,
        inputs.config.seed,
    ]
    encoder = [inputs.pretrained_meta["weights_sha256"], options.max_images]
    classifiers = {stage: meta["weights_sha256"] for stage, meta in inputs.metas.items()}
    own = {"map": options.map_points, "ood": options.ood, "transfer": options.transfer}
    hashes = {}
    for part in ASSESSMENTS:
        networks = classifiers if part in OF_CLASSIFIERS else encoder
        text = json.dumps([common, networks, own.get(part)])
        hashes[part] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashes


def wanted_parts(config: Config, inputs: Inputs) -> list[str]:
    """The parts to do, in their order; ``all`` leaves out those that have no input.

    A line says which, where test images, labels or a package lack.

    Raises:
        UserError: ``assess.parts`` names such a part, or none is left.
    """
    impossible: dict[str, str] = {}
    notes: list[str] = []
    if not inputs.classifiers:
        tag = f"--labels {config.labels} --seed {config.seed}"
        for part in OF_CLASSIFIERS:
            impossible[part] = f"no finished classifier of {tag} in {config.folder}"
    if config.assess.transfer is None:
        impossible["transfer"] = "name a data set with --assess.transfer"
    if inputs.splits.test is None:
        reason = "there are no labeled test images to measure with; give --data.test"
        impossible |= {part: reason for part in ASSESSMENTS if part not in WITHOUT_TEST}
        notes.append(f"without {', '.join(impossible)}: {reason}")
    elif len(inputs.test_ids) < 2:
        impossible["map"] = "a map needs two labeled test images or more; give --data.test"
        notes.append(f"without map: {impossible['map']}")
    if reason := label_part.why_impossible(inputs):
        impossible["labels"] = reason
        notes.append(f"without labels: {reason}")
    options = config.assess.parts.split(",")
    for part in options:
        if part in impossible:
            raise UserError(f"assess.parts={part}: {impossible[part]}")
    possible = [part for part in ASSESSMENTS if part not in impossible]
    if not possible:
        raise UserError(f"nothing can be measured; {'; '.join(notes)}")
    if "all" not in options:
        return [part for part in possible if part in options]
    for note in notes:
        inputs.accelerator.print(f"assess: {note}")
    return possible
