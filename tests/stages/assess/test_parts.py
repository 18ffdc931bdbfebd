"""The parts: their numbers and arrays."""

import numpy as np
import pytest

from shared.config.sections import ASSESSMENTS, Assess
from shared.runs.assessment import Assessment
from stages.assess.parts import PARTS
from tests.support.assessed import folder, read


def test_numbers(assessed):
    numbers = read(assessed)
    assert [part for part in ASSESSMENTS if part in numbers] == list(ASSESSMENTS)
    assert numbers["failed"] == {}
    assert numbers["seconds"].keys() == numbers["made_from"].keys() == set(ASSESSMENTS)
    about = numbers["about"]
    assert (about["n_labels"], about["n_train"], about["n_test"]) == (9, 36, 9)
    assert about["classifiers"].keys() == {"supervised", "finetune"}
    assert numbers["hashes"].keys() == {"encoder", "supervised", "finetune"}
    assert all(h["before"] == h["after"] for h in numbers["hashes"].values())

    rows = numbers["linear"]["rows"]
    assert [(row["layer"], row["labels"], row["n_labels"]) for row in rows] == [
        (layer, labels, n) for labels, n in (("3perclass", 9), ("all", 36)) for layer in range(3)
    ]
    assert all(row["chosen_by"] == "validation" and 0 <= row["knn"] <= 1 for row in rows)
    assert numbers["linear"]["best_layer"].keys() == {"3perclass", "all"}

    stages = {"supervised", "finetune"}
    harm = numbers["corruptions"]
    assert harm["accuracy"].keys() == harm["mean"].keys() == harm["clean"].keys() == stages
    for stage in stages:
        of_stage = [share for name in harm["names"] for share in harm["accuracy"][stage][name]]
        assert len(of_stage) == 55
        assert np.mean(of_stage) == pytest.approx(harm["mean"][stage])
        assert harm["clean"][stage] == pytest.approx(numbers["classifiers"][stage]["top1"])
    ood = numbers["ood"]
    assert list(ood["sets"].values()) == [9, 9, 4]  # the other set's test part
    assert all(0 <= share <= 1 for of in ood["auroc"].values() for share in of.values())
    assert (numbers["transfer"]["n_train"], numbers["transfer"]["n_test"]) == (16, 4)
    table = numbers["baselines"]["rows"]
    assert [row["input"] for row in table] == ["pixels"] * 4 + ["features"] * 4
    assert {row["n_labels"] + row["n_unlabeled"] for row in table} == {9, 36}


def test_arrays(assessed):
    arrays = np.load(folder(assessed) / "assess.npz")
    assert arrays["map/tsne"].shape == arrays["map/tsne_pixels"].shape == (9, 2)
    assert arrays["neighbours/query_images"].shape == (9, 8, 8, 3)
    assert arrays["neighbours/images"].shape == (9, 8, 8, 8, 3)
    assert arrays["neighbours/images"].dtype == np.uint8
    assert (np.diff(arrays["neighbours/similarity"], axis=1) <= 1e-6).all()
    assert np.bincount(arrays["neighbours/query_targets"]).tolist() == [3, 3, 3]
    assert arrays["corruptions/examples"].shape == (11, 5, 8, 8, 3)
    for stage in ("supervised", "finetune"):
        mine = {k.removeprefix(f"classifiers/{stage}/"): v for k, v in arrays.items()}
        right = mine["targets"] == mine["predictions"]
        assert mine["confusion"].trace() == right.sum()
        assert mine["confusion"].sum(1).tolist() == [3, 3, 3]
        assert sorted(mine["mistakes"]) == np.flatnonzero(~right).tolist()
        assert (np.diff(mine["confidence"][mine["mistakes"]]) <= 0).all()
        assert len(mine["mistake_images"]) == len(mine["mistakes"])


def test_every_part_has_a_function_a_key_and_a_word_in_the_help():
    assert tuple(PARTS) == ASSESSMENTS
    about_parts = {"about", "seconds", "made_from", "failed", "hashes"}
    assert Assessment.__annotations__.keys() - about_parts == set(ASSESSMENTS)
    help_text = " ".join((Assess.__doc__ or "").split())
    assert f"parts: all, or some of {', '.join(ASSESSMENTS)}, separated by commas" in help_text
