"""Optional stage 4: how good are the features and the classifiers of a run?

    accelerate launch -m stages.assess --labels 1pct
    accelerate launch -m stages.assess --assess.parts map,ood --assess.ood photos/

Reads the run's ``pretrain`` (or ``--linear.init``) and those of its classifiers that are there, and
writes ``<output>/<run>/assess-<labels>-seed<seed>``. No network is trained: their hashes before and
after are kept. A part that is done and whose networks, data and options are the same is not done
again; one that fails costs itself alone, and the next call tries it again.

``assess.json`` (there from the first part on; every accuracy is a share in [0, 1]):

    about        labels, n_labels, n_train, n_train_seen, n_test, seed, classes, encoder,
                 image_size, classifiers: {stage: folder's name}
    hashes       {"encoder" or a stage: {"before": ..., "after": ...}}: equal: nothing was trained
    seconds      {part: seconds}
    failed       {part: message}; such a part has no key of its own
    linear       rows: [{layer (0 is the encoder's output), width, labels ("1pct" or "all"),
                 n_labels, top1, top5, nll, ece, knn (top1 of nearest neighbours), *chosen}]
                 best_layer: {labels: layer}, by validation where there was one
    neighbours   k, same_class_at_1, same_class_at_8 (share of the nearest training images that
                 have the test image's class, or null)
    clusters     k, n_images, nmi, ari, accuracy: of k-means on the test images;
                 pixels: {nmi, ari, accuracy}
    map          n, methods: ["tsne", "tsne_pixels", "umap"] (umap where it is installed)
    classifiers  {stage: {title, top1, top5, nll, ece, parameters, n_labels}}
    corruptions  n_images, names, groups: {name: noise, blur or digital}, severities: [1..5],
                 clean: {stage: top1}, mean: {stage: mean over all},
                 accuracy: {stage: {name: [5 accuracies]}}
    ood          sets: {name: n_images}, auroc: {stage: {name: share}}, confidence: {stage: {name:
                 mean max probability, "test" too}}
    transfer     data, classes, n_train, n_test, rows: [{input ("features" or "pixels"), top1, top5,
                 nll, ece, *chosen}]
    baselines    rows: [{input ("pixels" or "features"), method, top1, n_labels, n_unlabeled,
                 *chosen}]; the methods: stages.assess.features.classical_baselines
    *chosen      hyper: {name: value}, chosen_by ("validation" or "default"), validation (accuracy
                 on labeled training images that were held out, or null)

``assess.npz`` (arrays; T test images with a class, positions count in the test or training images):

    map/positions (M,)  map/targets (M,)  map/tsne (M, 2)  map/tsne_pixels (M, 2)  map/umap (M, 2)
    neighbours/query_positions (Q,)  neighbours/query_targets (Q,)  neighbours/positions (Q, 8)
    neighbours/targets (Q, 8), -1 unknown  neighbours/similarity (Q, 8)
    neighbours/query_images (Q, S, S, 3) uint8  neighbours/images (Q, 8, S, S, 3) uint8
    classifiers/<stage>/positions (T,)  .../targets (T,)  .../predictions (T,)
    classifiers/<stage>/confidence (T,): the largest probability  .../confusion (C, C): rows are
        the true classes  .../mistakes (m,): indices into the T, most confident first
        .../mistake_images (m, S, S, 3) uint8
    corruptions/examples (names, 5, S, S, 3) uint8: one test image  corruptions/clean (S, S, 3)
    ood/<name>/examples (8, S, S, 3) uint8
"""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from shared.config.command import run_command
from shared.config.command_line import load_config
from shared.config.methods import METHODS
from shared.config.schema import ASSESSMENTS, Config, dump
from shared.runs.text import aligned
from shared.runtime.artifacts import provenance, save_arrays, write_atomically
from shared.runtime.errors import UserError
from shared.runtime.stop import Stopped, StopRequest
from shared.training.stage import forced
from stages.assess.parts import OF_CLASSIFIERS, PARTS, RETRIEVED, Inputs, Result, open_inputs


def run(config: Config, accelerator: Accelerator) -> Path:
    """Measure what is not measured yet, part by part, and print the table.

    Args:
        config: the run's configuration.
        accelerator: of this process. Networks are applied by all processes, the rest is done by
            the main process.

    Returns:
        The folder ``<output>/<run>/assess-<labels>-seed<seed>``.

    Raises:
        UserError: on bad input; and where a part failed, after all others are saved.
        Stopped: after saving the part in hand, where a signal asked for it.
    """
    inputs = open_inputs(config, accelerator)
    wanted = wanted_parts(config, inputs)
    path = config.folder / f"assess-{config.label_set.tag}-seed{config.seed}"
    settings = inputs.settings()
    numbers, arrays = load(path, settings, wanted if forced(config, "assess") else [])
    todo = [part for part in wanted if part not in numbers]
    accelerator.wait_for_everyone()  # all have read before one writes
    if not todo:
        accelerator.print(f"assess: already done, {path}\n\n{table(numbers)}")
        return path

    if inputs.main:
        with suppress(FileNotFoundError):
            (path / "meta.json").unlink()
        write_atomically(path / "config.yaml", dump(config))
    before = inputs.hashes()
    numbers = {"about": {}, "seconds": {}, "made_from": {}, **numbers}
    numbers |= {"about": inputs.about(), "failed": {}}  # of now
    hidden = None if inputs.main else True
    for part in (bar := tqdm(todo, "assess", unit="part", disable=hidden)):
        bar.set_postfix_str(part)
        began = time.perf_counter()
        try:
            result, more = PARTS[part](inputs)
        except Exception as error:  # costs this part alone
            if not isinstance(error, UserError):
                traceback.print_exc()
            result, more = None, {}
            numbers["failed"][part] = " ".join(f"{error or type(error).__name__}".split())
        accelerator.wait_for_everyone()
        if inputs.main:
            if result is not None:
                numbers[part], numbers["made_from"][part] = result, settings[part]
                numbers["seconds"][part] = round(time.perf_counter() - began, 1)
                arrays |= {f"{part}/{name}": array for name, array in more.items()}
            save(path, numbers, arrays)
        if StopRequest.agreed(0):
            raise Stopped(
                "stopped as asked after a part of assess, which is saved: run the same"
                " command to go on"
            )
    after = inputs.hashes()
    if after != before:
        raise AssertionError("the assessment changed a network")
    failed = numbers["failed"]
    if inputs.main:
        numbers["hashes"] = {name: {"before": before[name], "after": after[name]} for name in after}
        save(path, numbers, arrays)
        if not failed:
            meta = {
                "kind": "assessment",
                "stage": "assess",
                "seed": config.seed,
                **inputs.network,
                "labels": {
                    "given": config.labels,
                    "hash": inputs.labels.hash,
                    "number": len(inputs.labels.ids),
                },
                "settings": settings,
                **provenance(),
            }
            write_atomically(path / "meta.json", json.dumps(meta, indent=1))
        print(f"{table(numbers)}\n\nnumbers and arrays: {path / 'assess'}.json, .npz")
    if failed:
        which = "; ".join(f"{part}: {message}" for part, message in failed.items())
        raise UserError(
            f"{len(failed)} of {len(todo)} parts failed, the others are saved, and the"
            f" same command tries again: {which}"
        )
    return path


def wanted_parts(config: Config, inputs: Inputs) -> list[str]:
    """The parts to do; ``all`` leaves out what has nothing to work on.

    Raises:
        UserError: where such a part is asked for by name.
    """
    impossible: dict[str, str] = {}
    if not inputs.classifiers:
        tag = f"--labels {config.labels} --seed {config.seed}"
        for part in OF_CLASSIFIERS:
            impossible[part] = f"no finished classifier of {tag} in {config.folder}"
    if config.assess.transfer is None:
        impossible["transfer"] = "name a data set with --assess.transfer"
    asked = config.assess.parts.split(",")
    for part in asked:
        if part in impossible:
            raise UserError(f"assess.parts={part}: {impossible[part]}")
    return [p for p in ASSESSMENTS if p not in impossible and ("all" in asked or p in asked)]


def load(path: Path, settings: dict[str, str], again: Sequence[str]) -> Result:
    """The parts that are there, still hold and are not to be done again; none if damaged."""
    try:
        numbers = json.loads((path / "assess.json").read_text())
        with np.load(path / "assess.npz") as file:
            arrays = dict(file)
        made_from = numbers["made_from"]
        stale = {part for part in made_from if made_from[part] != settings[part]}
        stale |= made_from.keys() & set(again)
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        print(f"{path} is damaged ({error}); all of it is measured again", file=sys.stderr)
        return {}, {}
    for part in stale:
        del numbers[part], made_from[part]
    return numbers, {k: v for k, v in arrays.items() if k.partition("/")[0] not in stale}


def save(path: Path, numbers: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write both files; the arrays first, because the numbers say which parts are done."""
    save_arrays(path / "assess.npz", arrays)
    write_atomically(path / "assess.json", json.dumps(numbers, indent=1))


# ---------------------------------------------------------------------------------- the table
def table(numbers: dict[str, Any]) -> str:
    """What ``assess.json`` holds, as text; accuracies in percent."""
    about = numbers["about"]
    blocks = [
        f"{about['encoder']}, {about['labels']} = {about['n_labels']} labels, seed {about['seed']},"
        f" {about['n_train']:,} training and {about['n_test']:,} test images; top-1 in %"
    ]
    if part := numbers.get("linear"):
        tags = list(dict.fromkeys(row["labels"] for row in part["rows"]))
        count = {row["labels"]: row["n_labels"] for row in part["rows"]}
        head = [
            "frozen features",
            *(
                f"{how}, {count[tag]:,} labels"
                for tag in tags
                for how in ("logistic", "neighbours")
            ),
        ]
        lines = [head]
        for layer in sorted({row["layer"] for row in part["rows"]}):
            of_layer = [row for row in part["rows"] if row["layer"] == layer]
            name = f"head, layer {layer}" if layer else "encoder"
            cells = [percent(row[key]) for row in of_layer for key in ("top1", "knn")]
            lines.append([f"{name} ({of_layer[0]['width']})", *cells])
        blocks.append(aligned(lines))
    if part := numbers.get("clusters"):
        lines = [["k-means", "NMI", "ARI", "accuracy"]]
        for name, row in (("features", part), ("pixels", part["pixels"])):
            lines.append([name, *(percent(row[key]) for key in ("nmi", "ari", "accuracy"))])
        blocks.append(aligned(lines))
    if part := numbers.get("neighbours"):
        blocks.append(
            "nearest training images of the same class: first"
            f" {percent(part['same_class_at_1'])}, first {part['k']}"
            f" {percent(part[f'same_class_at_{RETRIEVED}'])}"
        )
    own, harm, ood = (numbers.get(part, {}) for part in OF_CLASSIFIERS)
    if stages := [*dict.fromkeys([*own, *harm.get("mean", ()), *ood.get("auroc", ())])]:
        groups = list(dict.fromkeys(harm["groups"].values())) if harm else []
        lines = [
            [
                "classifiers",
                *(["clean"] if own else []),
                *groups,
                *(["corrupted"] if harm else []),
                *(f"AUROC {name}" for name in ood.get("sets", ())),
            ]
        ]
        for stage in stages:
            cells = [percent(own[stage]["top1"])] if own else []
            for group in groups:
                inside = [name for name, of in harm["groups"].items() if of == group]
                cells.append(percent(np.mean([harm["accuracy"][stage][name] for name in inside])))
            cells += [percent(harm["mean"][stage])] if harm else []
            cells += [percent(share) for share in ood["auroc"][stage].values()] if ood else []
            lines.append([METHODS[stage].title, *cells])
        blocks.append(aligned(lines))
    if part := numbers.get("transfer"):
        lines = [[f"linear evaluation on {part['data']}", "top-1"]]
        lines += [[row["input"], percent(row["top1"])] for row in part["rows"]]
        blocks.append(aligned(lines))
    if part := numbers.get("baselines"):
        methods = list(dict.fromkeys(row["method"] for row in part["rows"]))
        inputs_ = list(dict.fromkeys(row["input"] for row in part["rows"]))
        found = {(row["method"], row["input"]): row["top1"] for row in part["rows"]}
        lines = [["scikit-learn on the same labels", *inputs_]]
        lines += [[name, *(percent(found[name, i]) for i in inputs_)] for name in methods]
        blocks.append(aligned(lines))
    blocks += [f"{part} failed: {message}" for part, message in numbers["failed"].items()]
    return "\n\n".join(blocks)


def percent(share: Any) -> str:
    """A share in percent with one digit; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage alone."""
    purpose = (
        "Optional stage 4: how good the features and the classifiers of a run are; writes"
        " <output>/<run>/assess-<labels>-seed<seed>."
    )
    config, _ = load_config(argv, "stages.assess", purpose, ("assess",))
    return run_command(run, config)
