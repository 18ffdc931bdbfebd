"""A run's folder as the stages leave it, with made-up numbers: what the page is tested on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.config.methods import CLASSIFIERS
from shared.config.schema import Config, dump
from shared.data.sources import open_data
from shared.runs.statistics import summarize
from shared.runs.table import Table

CLASSES = [str(digit) for digit in range(10)]


def make_run(folder: Path, config: Config, *, draws: int = 3, labels=("1pct", "10pct")) -> Path:
    """All methods at some label sets: ``meta.json``, ``metrics.jsonl``, ``config.yaml``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    data = replace(config.data, workers=0)  # as the page opens them, which are kept then
    digits = data.train == "digits"
    images = open_data(data, config.label_set).train.fingerprint if digits else "none"
    encoder = {
        "kind": "encoder",
        "stage": "pretrain",
        "encoder": "simclr_resnet8_2x_sk0",
        "image_size": 8,
        "weights_sha256": "0",
        "seconds": 60.0,
        "git": "abc123",
        "versions": {"torch": "2.15.0"},
        "settings": {"precision": "no", "images": images},
    }
    lines = [
        {
            "step": step,
            "loss": 10 - step / 100,
            "contrastive_top1": step / 400,
            "loss_of_chance": 11.0,
        }
        for step in (50, 100, 150)
    ]
    _write(folder / "pretrain", encoder, lines)
    for stage in CLASSIFIERS:
        for tag in labels if stage != "self-distill" else ():
            for seed in range(draws):
                rng = np.random.default_rng([len(stage), len(tag), seed])
                few = tag == labels[0]
                level = 0.98 if stage in ("finetune", "distill") else 0.72 if few else 0.96
                small = stage in ("distill", "supervised-student")
                result = {
                    "stage": stage,
                    "labels": tag,
                    "n_labels": 14 if few else 144,
                    "seed": seed,
                    "parameters": 78330 if small else 326378,
                    "top1": level + 0.01 * rng.random(),
                    "top5": 1.0,
                    "nll": 0.1,
                    "ece": 0.02,
                    "seconds": 3.0,
                }
                meta = {
                    **encoder,
                    "kind": "classifier",
                    "stage": stage,
                    "classes": CLASSES,
                    "labels": {"given": tag},
                    "result": result,
                }
                share = "agreement" if stage == "distill" else "top1"
                steps = () if CLASSIFIERS[stage].fitted else (50, 100)
                lines = [{"step": step, "loss": 20 / step, share: 0.8} for step in steps]
                _write(folder / f"{stage}-{tag}-seed{seed}", meta, lines)
    return folder


def _write(folder: Path, meta: dict, lines: list[dict]) -> None:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def assess(run: Path, labels: str = "1pct", seed: int = 0) -> Path:
    """What ``stages.assess`` leaves, with all its parts."""
    rng = np.random.default_rng(0)
    T, C, stages = 360, 10, ("supervised", "finetune", "distill")
    images = lambda *shape: rng.integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)  # noqa: E731
    corruptions = ["gaussian_noise", "motion_blur", "contrast"]
    arrays = {"map/positions": np.arange(T), "map/targets": rng.integers(0, C, T)}
    for method in ("tsne", "tsne_pixels"):
        arrays[f"map/{method}"] = rng.normal(size=(T, 2)) + 4 * arrays["map/targets"][:, None]
    arrays |= {
        "neighbours/query_positions": np.arange(12),
        "neighbours/query_targets": np.arange(12) % C,
        "neighbours/targets": (np.arange(12) % C)[:, None] + (rng.random((12, 8)) < 0.1),
        "neighbours/query_images": images(12),
        "neighbours/images": images(12, 8),
    }
    for stage in stages:
        targets = rng.integers(0, C, T)
        wrong = rng.random(T) < 0.05
        predictions = np.where(wrong, (targets + 1) % C, targets)
        matrix = np.zeros((C, C), dtype=np.int64)
        np.add.at(matrix, (targets, predictions), 1)
        confidence = rng.beta(9, 1, T)
        mistakes = np.flatnonzero(wrong)[np.argsort(-confidence[wrong])]
        arrays |= {
            f"classifiers/{stage}/{name}": value
            for name, value in {
                "targets": targets,
                "predictions": predictions,
                "confidence": confidence,
                "confusion": matrix,
                "mistakes": mistakes,
                "mistake_images": images(len(mistakes)),
            }.items()
        }
    logistic = {
        "layer": 0,
        "width": 128,
        "labels": labels,
        "n_labels": 14,
        "top1": 0.95,
        "top5": 1.0,
        "nll": 0.2,
        "ece": 0.03,
        "hyper": {"C": 0.1},
        "chosen_by": "default",
        "validation": None,
        "knn": 0.97,
    }
    assessment = {
        "about": {
            "labels": labels,
            "n_labels": 14,
            "n_train": 1437,
            "n_test": T,
            "seed": seed,
            "classes": CLASSES,
            "encoder": "simclr_resnet8_2x_sk0",
            "image_size": 8,
        },
        "hashes": {"encoder": {"before": "a", "after": "a"}},
        "seconds": {},
        "failed": {"transfer": "no such folder or file: elsewhere"},
        "linear": {"rows": [logistic, {**logistic, "layer": 1}], "best_layer": {labels: 0}},
        "neighbours": {
            "k": 20,
            "temperature": 0.1,
            "same_class_at_1": 0.97,
            "same_class_at_8": 0.95,
        },
        "clusters": {
            "k": C,
            "n_images": T,
            "nmi": 0.9,
            "ari": 0.88,
            "accuracy": 0.93,
            "pixels": {"nmi": 0.7, "ari": 0.6, "accuracy": 0.75},
        },
        "map": {"n": T, "methods": ["tsne", "tsne_pixels"]},
        "classifiers": {
            stage: {"title": CLASSIFIERS[stage].title, "top1": 0.95, "ece": 0.02}
            for stage in stages
        },
        "corruptions": {
            "n_images": T,
            "names": corruptions,
            "severities": [1, 2, 3, 4, 5],
            "clean": dict.fromkeys(stages, 0.95),
            "mean": dict.fromkeys(stages, 0.8),
            "accuracy": {
                stage: {
                    name: sorted(rng.uniform(0.4, 0.95, 5), reverse=True) for name in corruptions
                }
                for stage in stages
            },
        },
        "ood": {
            "sets": {"noise": 360},
            "auroc": {stage: {"noise": 0.91} for stage in stages},
            "confidence": {stage: {"noise": 0.5, "test": 0.9} for stage in stages},
        },
        "baselines": {
            "rows": [
                {
                    "method": "label spreading",
                    "input": "pixels",
                    "top1": 0.85,
                    "n_labels": 14,
                    "n_unlabeled": 1423,
                    "hyper": {},
                    "chosen_by": "default",
                    "validation": None,
                }
            ]
        },
    }
    arrays |= {"labels/suspects": images(2), "labels/twins": images(3)}
    arrays["labels/outliers"] = images(0)
    twin = {"file": "a/1.png", "set": "training", "label": CLASSES[0]}
    assessment["labels"] = {
        "file": f"{labels}-to-check.csv",
        "judged": 14,
        "folds": 5,
        "agreement": 0.9,
        "not_judged": [],
        "suspects": [
            {"file": f"{i}.png", "label": CLASSES[0], "suggested": CLASSES[1], "score": 0.01}
            for i in range(2)
        ],
        "looked_at": {"training": 1437, "test": T},
        "twins": [[twin, {**twin, "set": "test", "label": None}, {**twin, "label": CLASSES[1]}]],
        "outliers": [],
    }
    folder = run / f"assess-{labels}-seed{seed}"
    folder.mkdir()
    (folder / "assess.json").write_text(json.dumps(assessment))
    np.savez(folder / "assess.npz", **arrays)
    return folder


def fill_table(run: Path) -> Path:
    """What ``pipeline.py --table`` leaves, with a cell that failed and one that is missing."""
    rows, columns = ["supervised", "student"], ["1%", "10%"]
    lines = [
        {
            "row": row,
            "column": column,
            "method": "distill",
            "labels": f"{column[:-1]}pct",
            "seed": seed,
            "vary": {},
            "folder": "",
            "message": "",
            "status": "done",
            "result": {"top1": 0.9 + 0.01 * seed, "parameters": 78330, "n_labels": 14},
        }
        for row in rows
        for column in columns
        for seed in (0, 1, 2)
    ]
    for line in lines[-3:]:
        line |= {"status": "failed", "message": "the loss is nan <at> step 3", "result": {}}
    for line in lines[3:6]:
        line |= {"status": "missing", "result": {}}
    table = Table(
        name="small",
        title="A small table",
        rows={row: {} for row in rows},
        columns={column: {} for column in columns},
        seeds=(0, 1, 2),
        against="supervised",
    )
    folder = run / "tables" / "small"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summarize(table, lines)))
    return folder
