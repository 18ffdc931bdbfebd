"""The parts of an assessment: what measures each, what its numbers depend on, which are wanted."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from shared.config.schema import ASSESSMENTS, Config, hashed_settings
from shared.runtime.errors import UserError
from stages.assess import classifier_parts, feature_parts
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
}
OF_CLASSIFIERS = ("classifiers", "corruptions", "ood")  # the others measure features


def settings_of_parts(inputs: Inputs) -> dict[str, str]:
    """For each part a hash of everything that its numbers depend on."""
    options, train, test = inputs.config.assess, inputs.splits.train, inputs.test_images
    common = [
        hashed_settings(inputs.config.data, "data"),
        train.fingerprint,
        train.labels_fingerprint,
        test.fingerprint,
        test.labels_fingerprint,
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

    Raises:
        UserError: ``assess.parts`` names such a part.
    """
    impossible: dict[str, str] = {}
    if not inputs.classifiers:
        tag = f"--labels {config.labels} --seed {config.seed}"
        for part in OF_CLASSIFIERS:
            impossible[part] = f"no finished classifier of {tag} in {config.folder}"
    if config.assess.transfer is None:
        impossible["transfer"] = "name a data set with --assess.transfer"
    options = config.assess.parts.split(",")
    for part in options:
        if part in impossible:
            raise UserError(f"assess.parts={part}: {impossible[part]}")
    possible = [part for part in ASSESSMENTS if part not in impossible]
    return possible if "all" in options else [part for part in possible if part in options]
