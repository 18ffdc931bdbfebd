"""An assessment as text: one small table per part, accuracies in percent."""

import numpy as np

from shared.config.methods import METHODS
from shared.runs.assessment import (
    Assessment,
    Baselines,
    Clusters,
    LabelCheck,
    Linear,
    Neighbours,
    Transfer,
    Twin,
    outliers_line,
    suspects_line,
    twins_line,
)
from shared.runs.text import aligned, percent
from shared.runtime.media import printable

LISTED = 10  # images of each list, at most


def assessment_text(assessment: Assessment) -> str:
    """What ``assess.json`` holds, as text."""
    about = assessment["about"]
    blocks = [
        f"{about['encoder']}, {about['labels']} = {about['n_labels']} labels, seed {about['seed']},"
        f" {about['n_train']:,} training and {about['n_test']:,} test images; top-1 in %"
    ]
    if linear := assessment.get("linear"):
        blocks.append(_linear(linear))
    if clusters := assessment.get("clusters"):
        blocks.append(_clusters(clusters))
    if neighbours := assessment.get("neighbours"):
        blocks.append(_neighbours(neighbours))
    blocks += _classifiers(assessment)
    if transfer := assessment.get("transfer"):
        blocks.append(_transfer(transfer))
    if baselines := assessment.get("baselines"):
        blocks.append(_baselines(baselines))
    if labels := assessment.get("labels"):
        blocks += _labels(labels)
    blocks += [f"{part} failed: {message}" for part, message in assessment["failed"].items()]
    return "\n\n".join(blocks)


def _linear(part: Linear) -> str:
    rows = part["rows"]
    n_labels = {row["labels"]: row["n_labels"] for row in rows}
    head = ["frozen features"]
    for n in n_labels.values():
        head += [f"logistic, {n:,} labels", f"neighbours, {n:,} labels"]
    lines = [head]
    for layer in sorted({row["layer"] for row in rows}):
        of_layer = [row for row in rows if row["layer"] == layer]
        name = f"head, layer {layer}" if layer else "encoder"
        cells = [percent(share) for row in of_layer for share in (row["top1"], row["knn"])]
        lines.append([f"{name} ({of_layer[0]['width']})", *cells])
    return aligned(lines)


def _clusters(part: Clusters) -> str:
    lines = [["k-means", "NMI", "ARI", "accuracy"]]
    for name, row in (("features", part), ("pixels", part["pixels"])):
        lines.append([name, *(percent(row[key]) for key in ("nmi", "ari", "accuracy"))])
    return aligned(lines)


def _neighbours(part: Neighbours) -> str:
    return (
        "nearest training images of the same class: first"
        f" {percent(part['same_class_at_1'])}, first {part['k']}"
        f" {percent(part['same_class_at_8'])}"
    )


def _classifiers(assessment: Assessment) -> list[str]:
    """One block of three parts, a line per classifier; no block without any of them."""
    columns: dict[str, dict[str, float]] = {}  # title -> stage -> share
    if classifiers := assessment.get("classifiers"):
        columns["clean"] = {stage: row["top1"] for stage, row in classifiers.items()}
    if corruptions := assessment.get("corruptions"):
        for group in dict.fromkeys(corruptions["groups"].values()):
            names = [name for name, of in corruptions["groups"].items() if of == group]
            columns[group] = {
                stage: float(np.mean([shares[name] for name in names]))
                for stage, shares in corruptions["accuracy"].items()
            }
        columns["corrupted"] = corruptions["mean"]
    if ood := assessment.get("ood"):
        for name in ood["sets"]:
            columns[f"AUROC {name}"] = {s: shares[name] for s, shares in ood["auroc"].items()}
    stages = dict.fromkeys(stage for column in columns.values() for stage in column)
    if not stages:
        return []
    lines = [["classifiers", *columns]]
    for stage in stages:
        cells = [percent(column[stage]) for column in columns.values()]
        lines.append([METHODS[stage].title, *cells])
    return [aligned(lines)]


def _transfer(part: Transfer) -> str:
    head = [f"linear evaluation on {part['data']}", "top-1"]
    return aligned([head, *([row["input"], percent(row["top1"])] for row in part["rows"])])


def _baselines(part: Baselines) -> str:
    top1 = {(row["method"], row["input"]): row["top1"] for row in part["rows"]}
    methods, inputs = (list(dict.fromkeys(names)) for names in zip(*top1, strict=True))
    lines = [["scikit-learn on the same labels", *inputs]]
    lines += [[method, *(percent(top1[method, name]) for name in inputs)] for method in methods]
    return aligned(lines)


def _labels(part: LabelCheck) -> list[str]:
    """Suspects, twins and outliers: how many, and the first of each."""
    blocks = [suspects_line(part)]
    if suspects := part["suspects"]:
        lines = [["may be wrong", "label", "suggested", "score"]]
        for of in suspects[:LISTED]:
            names = (printable(of[key]) for key in ("file", "label", "suggested"))
            lines.append([*names, f"{of['score']:.3f}"])
        blocks.append(aligned(lines))
    groups = [
        " = ".join(map(_twin, group[:LISTED])) + " = ..." * (len(group) > LISTED)
        for group in part["twins"]
    ]
    far = [f"{_twin(of)}: distance {of['distance']:.3f}" for of in part["outliers"]]
    for line, listed in ((twins_line(part), groups), (outliers_line(part), far)):
        others = ["..."] * (len(listed) > LISTED)
        blocks.append("\n  ".join([line, *listed[:LISTED], *others]))
    return blocks


def _twin(of: Twin) -> str:
    label = "" if of["label"] is None else f", {printable(of['label'])}"
    return f"{printable(of['file'])} ({of['set']}{label})"
