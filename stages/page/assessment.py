"""The section that shows what ``stages.assess`` measured: one function per part of it."""

import shlex
from collections.abc import Iterator, Sequence

import numpy as np

from shared.config.labelset import LabelSet
from shared.config.methods import METHODS
from shared.runs.assessment import Choice, outliers_line, suspects_line, twins_line
from shared.runs.text import percent
from shared.runtime.media import printable
from stages.page import pictures
from stages.page.blocks import (
    Block,
    Gallery,
    Heading,
    Missing,
    Paragraph,
    Picture,
    Table,
    or_missing,
)
from stages.page.facts import method_to_deploy
from stages.page.pictures import svg
from stages.page.read import Assessment, Run

MAPS = {
    "tsne": "t-SNE of the features",
    "umap": "UMAP of the features",
    "tsne_pixels": "t-SNE of the pixels, to compare with",
}


def assessments(run: Run) -> Iterator[Block]:
    """What ``stages.assess`` measured: per label set the assessment with the lowest seed."""
    if not run.assessments:
        recipe = shlex.quote(str(run.folder / "config.yaml"))  # has the last labels and seed
        yield Missing(
            "Calibration, confusion, mistakes, map, retrieval, robustness, transfer",
            f"not measured; python -m stages.assess --config {recipe} does",
        )
    tags = sorted(tag for tag, _ in run.assessments)
    for tag in dict.fromkeys([*run.tags, *tags]):
        seeds = sorted(seed for other, seed in run.assessments if other == tag)
        if seeds:
            yield from _label_set(run, tag, seeds)


def _label_set(run: Run, tag: str, seeds: Sequence[int]) -> Iterator[Block]:
    """The assessment of a label set, with the first of its seeds."""
    labels, assessment = LabelSet.of_tag(tag), run.assessments[tag, seeds[0]]
    share = " of the labels" if labels.share is not None else ""
    yield Heading(f"{labels.title}{share}, seed {seeds[0]}")
    if seeds[1:]:
        yield Paragraph(f"Also assessed, not shown: seeds {', '.join(map(str, seeds[1:]))}.")
    if isinstance(assessment, str):
        yield Missing(f"Assessment of {tag}", assessment)
    else:
        yield from _all_parts(assessment)


def _all_parts(assessment: Assessment) -> Iterator[Block]:
    drawn = {
        "Calibration, confusion, mistakes": _classifier,
        "Map of the features": _map,
        "Nearest neighbours": _neighbours,
        "Corruptions": _corruptions,
    }
    for name, make in drawn.items():
        yield Gallery(or_missing(name, make, assessment))
    tabulated = {
        "Quality of the features": _features,
        "Images of another kind": _ood,
        "Transfer": _transfer,
        "Classical baselines": _baselines,
        "Labels to check, twins, outliers": _labels,
        "Frozen networks": _frozen,
    }
    for name, make in tabulated.items():
        yield from or_missing(name, make, assessment)


def _classifier(assessment: Assessment) -> Iterator[Block]:
    """Calibration, confusion and mistakes of the classifier to deploy."""
    classifiers = assessment.part("classifiers")
    name = method_to_deploy((of, numbers["top1"]) for of, numbers in classifiers.items())
    title, ece = METHODS[name].title, percent(classifiers[name]["ece"])
    classes = list(assessment.about["classes"])
    targets, predictions, confidence, matrix, wrong, images = (
        assessment.array(f"classifiers/{name}/{array}")
        for array in (
            "targets",
            "predictions",
            "confidence",
            "confusion",
            "mistakes",
            "mistake_images",
        )
    )
    tag, n, n_wrong = assessment.labels.tag, len(targets), int((predictions != targets).sum())
    yield Picture(
        f"reliability-{tag}",
        svg(pictures.reliability(name, confidence, predictions == targets)),
        f"Reliability diagram: expected calibration error {ece}%",
        f"Reliability of the {title}: share of right answers against confidence, 15 bins;"
        f" expected calibration error {ece}%, n = {n:,} test images.",
    )
    yield Picture(
        f"confusion-{tag}",
        svg(pictures.confusion(matrix, classes)),
        f"Confusion matrix of {len(classes)} classes: {n_wrong} of {n} wrong",
        f"Confusion of the {title}: rows are true classes, numbers are images; grey right,"
        f" red wrong (n = {n:,}). The stronger, the larger the share of the row.",
    )
    if not len(wrong):
        yield Paragraph(f"The {title} made no mistake on {n:,} test images.")
        return
    kept = wrong[: len(images)][:12]
    true, predicted = ([classes[i] for i in of[kept]] for of in (targets, predictions))
    pairs = "; ".join(f"{b} instead of {a}" for a, b in zip(true, predicted, strict=True))
    thumbnails = _thumbnails(images[: len(kept)])
    yield Picture(
        f"mistakes-{tag}",
        svg(pictures.mistakes(thumbnails, true, predicted, confidence[kept])),
        f"Most confident mistakes: {pairs}",
        f"The {len(kept)} most confident of {n_wrong} mistakes of the {title}.",
    )


def _thumbnails(images: np.ndarray, side: int = 96) -> np.ndarray:
    """(..., S, S, 3), large images thinned to about ``side`` pixels: the page stays small."""
    step = max(images.shape[-2] // side, 1)
    return images[..., ::step, ::step, :]


def _map(assessment: Assessment) -> Iterator[Block]:
    classes = list(assessment.about["classes"])
    for name in sorted(assessment.part("map")["methods"], key=list(MAPS).index):
        points, targets = assessment.array(f"map/{name}"), assessment.array("map/targets")
        yield Picture(
            f"map-{name}-{assessment.labels.tag}",
            svg(pictures.feature_map(points, targets, classes)),
            f"{MAPS[name]}: {len(points)} images as points, coloured by class",
            f"{MAPS[name]}; {len(points):,} test images, coloured and named by class.",
        )


def _neighbours(assessment: Assessment) -> Iterator[Block]:
    numbers = assessment.part("neighbours")
    at_1, at_8 = percent(numbers["same_class_at_1"]), percent(numbers["same_class_at_8"])
    targets = assessment.array("neighbours/targets")
    same = targets == assessment.array("neighbours/query_targets")[:, None]
    queries = np.linspace(0, len(same) - 1, min(len(same), 8)).astype(int)  # of all classes
    images = _thumbnails(assessment.array("neighbours/query_images")[queries])
    neighbours = _thumbnails(assessment.array("neighbours/images")[queries])
    n_same = int(same[queries].sum())
    yield Picture(
        f"neighbours-{assessment.labels.tag}",
        svg(pictures.retrieval(images, neighbours, same[queries])),
        f"Retrieval sheet: {len(queries)} test images and the {same.shape[1]} nearest training"
        f" images; {n_same} of {same[queries].size} have the same class",
        f"Test images and the {same.shape[1]} training images nearest in feature space; a cross:"
        " another or an unknown class. Over all test images the nearest has the same class in"
        f" {at_1}%, the nearest 8 in {at_8}%.",
    )


def _corruptions(assessment: Assessment) -> Iterator[Block]:
    numbers = assessment.part("corruptions")
    clean, mean = numbers["clean"], numbers["mean"]
    name = method_to_deploy(clean.items())
    title = METHODS[name].title
    accuracies = numbers["accuracy"][name]
    means = "; ".join(
        f"{METHODS[of].short} {percent(share)}% (untouched {percent(clean[of])}%)"
        for of, share in mean.items()
    )
    drawing = pictures.robustness(
        np.array(list(accuracies.values())), list(accuracies), clean[name]
    )
    yield Picture(
        f"corruptions-{assessment.labels.tag}",
        svg(drawing),
        f"Accuracy of the {title} under {len(accuracies)} corruptions at 5 severities,"
        f" mean {percent(mean[name])}%",
        f"The {title} on corrupted test images, n = {numbers['n_images']:,}; the"
        f" stronger the colour, the more is lost. Mean over all corruptions: {means}.",
    )


def _features(assessment: Assessment) -> Iterator[Block]:
    encoder, n_test = assessment.about["encoder"], assessment.about["n_test"]
    rows = []
    for row in assessment.part("linear")["rows"]:
        layer = f"projection layer {row['layer']}" if row["layer"] else "encoder"
        labels = f"{row['n_labels']:,} ({LabelSet.of_tag(row['labels']).title})"
        top1, knn = percent(row["top1"]), percent(row["knn"])
        rows.append([layer, str(row["width"]), labels, top1, _chosen(row), knn])
    yield Table(
        [
            "features",
            "width",
            "labels",
            "logistic regression, top-1 %",
            "chosen",
            "nearest neighbours, top-1 %",
        ],
        rows,
        f"Frozen features of {encoder}; n = {n_test:,} test images."
        " What was chosen was chosen on a held-out part of the training labels, where these are"
        " enough for it.",
    )
    yield from or_missing("Clusters", _clusters, assessment)


def _clusters(assessment: Assessment) -> Iterator[Block]:
    clusters = assessment.part("clusters")
    rows = []
    for name, scores in {"features": clusters, "pixels": clusters["pixels"]}.items():
        accuracy, nmi, ari = percent(scores["accuracy"]), scores["nmi"], scores["ari"]
        rows.append([name, accuracy, f"{nmi:.3f}", f"{ari:.3f}"])
    yield Table(
        ["k-means on", "accuracy by matching %", "NMI", "ARI"],
        rows,
        f"Clusters found on {clusters['n_images']:,} training images without labels, k ="
        f" {clusters['k']}, and compared with the classes of n ="
        f" {assessment.about['n_test']:,} test images: NMI and ARI are 1 where they agree, 0 at"
        " chance.",
    )


def _chosen(row: Choice) -> str:
    """The parameters of a classical method, and whether they were chosen or are the default."""
    texts = []
    for name, value in row["hyper"].items():
        number = isinstance(value, int | float)
        texts.append(f"{name} {value:.3g}" if number else f"{name} {value}")
    return f"{', '.join(texts)} ({row['chosen_by']})" if texts else row["chosen_by"]


def _ood(assessment: Assessment) -> Iterator[Block]:
    numbers = assessment.part("ood")
    auroc = numbers["auroc"]
    rows = []
    for name, n in numbers["sets"].items():
        rows.append([name, f"{n:,}", *(percent(values[name]) for values in auroc.values())])
    yield Table(
        ["images", "n", *(METHODS[name].short for name in auroc)],
        rows,
        "Can the confidence tell the test images from images of another kind? AUROC, %: 100"
        " perfectly, 50 not at all.",
    )


def _transfer(assessment: Assessment) -> Iterator[Block]:
    numbers = assessment.part("transfer")
    rows = [
        [row["input"], percent(row["top1"]), f"{row['nll']:.3f}", _chosen(row)]
        for row in numbers["rows"]
    ]
    classes = numbers["classes"]
    yield Table(
        ["input", "top-1 %", "NLL", "chosen"],
        rows,
        f"Logistic regression on another data set, {numbers['data']}:"
        f" {numbers['n_train']:,} training and {numbers['n_test']:,} test images,"
        f" {len(classes) if isinstance(classes, list) else classes} classes.",
    )


def _baselines(assessment: Assessment) -> Iterator[Block]:
    rows = []
    for row in assessment.part("baselines")["rows"]:
        counts = f"{row['n_labels']:,}", f"{row['n_unlabeled']:,}"
        rows.append([row["method"], row["input"], *counts, percent(row["top1"]), _chosen(row)])
    yield Table(
        ["method", "input", "labels", "unlabeled images", "top-1 %", "chosen"],
        rows,
        f"Classical methods of scikit-learn; n = {assessment.about['n_test']:,} test images.",
    )


def _labels(assessment: Assessment) -> Iterator[Block]:
    """Labels that may be wrong, images that look the same, images far from all others."""
    numbers = assessment.part("labels")
    file = assessment.folder / numbers["file"]
    listed = {
        "suspects": (
            ["may be wrong", "label", "suggested", "score"],
            [
                [of["file"], of["label"], of["suggested"], f"{of['score']:.3f}"]
                for of in numbers["suspects"]
            ],
            f"{suspects_line(numbers)}. Score: probability of the label, the lowest first. Correct"
            f" the column label of {file} and give the file as --labels.",
        ),
        "twins": (
            ["twin", "group", "set", "label"],
            [
                [of["file"], str(number), of["set"], of["label"] or "unknown"]
                for number, group in enumerate(numbers["twins"], 1)
                for of in group
            ],
            f"{twins_line(numbers)}.",
        ),
        "outliers": (
            ["outlier", "set", "label", "distance"],
            [
                [of["file"], of["set"], of["label"] or "unknown", f"{of['distance']:.3f}"]
                for of in numbers["outliers"]
            ],
            f"{outliers_line(numbers)}. Distance: to the 50th nearest neighbour, of few images a"
            " nearer one; the largest first.",
        ),
    }
    for name, (header, rows, caption) in listed.items():
        if not rows:
            yield Paragraph(caption)
            continue
        images = assessment.array(f"labels/{name}")[: len(rows)]
        shown = [[printable(cell) for cell in row] for row in rows[: len(images)]]
        more = f" Shown: the first {len(shown)}; all: assess.json." if rows[len(shown) :] else ""
        pictures_ = [pictures.thumbnail(image) for image in _thumbnails(images)]
        yield Table(header, shown, printable(caption + more), images=pictures_)


def _frozen(assessment: Assessment) -> Iterator[Block]:
    """Whether the assessment left the networks as they were."""
    hashes = assessment.hashes
    changed = [name for name, pair in hashes.items() if pair["before"] != pair["after"]]
    if changed:
        yield Missing("Frozen networks", f"the assessment changed {', '.join(changed)}")
    elif hashes:
        yield Paragraph(
            f"Hashes before and after the assessment are equal ({', '.join(hashes)}):"
            " nothing was trained."
        )
