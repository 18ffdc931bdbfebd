"""What to deploy, on made-up predictions whose differences are known."""

import numpy as np
import pytest

from shared.runs import deployment
from shared.runs.deployment import advise, gain
from shared.runs.results import advice_text
from shared.runtime.errors import UserError
from shared.runtime.tensors import save_arrays


def rows(run, shares, n=400, seeds=(0,), noted=True, labels="1pct") -> list[dict]:
    """Rows whose first images are right, so that one's right images are among the better's."""
    made = []
    for seed in seeds:
        for stage, share in shares.items():
            targets = np.zeros(n, dtype=np.int64)
            right = np.arange(n) < round(n * (share + 0.01 * seed))
            if noted:
                arrays = {"positions": np.arange(n), "predictions": 1 - right, "targets": targets}
                save_arrays(run / f"{stage}-{labels}-seed{seed}" / "predictions.npz", arrays)
            row = {"stage": stage, "labels": labels, "n_labels": 14, "seed": seed}
            size = 5 if stage == "supervised-student" else 9
            made.append(row | {"parameters": size, "top1": right.mean(), "seconds": 1.0})
    return made


STRONG = {"pixels-svm": 0.6, "supervised": 0.5, "finetune": 0.9, "distill": 0.9}


def test_the_student_is_preferred_where_it_is_not_clearly_worse(tmp_path):
    advice = advise(tmp_path, rows(tmp_path, STRONG | {"finetune": 0.905}))
    assert advice.method == "distill"
    folder = tmp_path / "distill-1pct-seed0"
    assert advice.sentences[0] == (
        f"Deploy: distilled student ({folder}), 90.0% of the test images right."
    )
    assert advice.sentences[1].startswith("Fine-tuned teacher has +0.5 ± ")
    assert advice.sentences[2].startswith("Pretraining paid: +30.0 ± ")
    assert advice.sentences[2].endswith("without it (support vector machine on pixels, 60.0%).")


@pytest.mark.parametrize(
    ("shares", "method", "says"),
    [
        (STRONG | {"distill": 0.8}, "finetune", "Pretraining paid"),
        (STRONG | {"features-logistic": 0.97}, "features-logistic", "Pretraining paid"),
        (STRONG | {"pixels-svm": 0.97}, "pixels-svm", "Pretraining did not pay here: -7.0"),
        (STRONG | {"supervised": 0.97}, "supervised", "of distilled student over the best row"),
        (STRONG | {"pixels-svm": 0.899}, "distill", "Whether pretraining paid is undecided: +0.1"),
        ({"supervised": 0.9, "supervised-student": 0.9}, "supervised-student", "Deploy"),
        ({"pixels-svm": 0.9, "supervised": 0.899}, "supervised", "its model is not saved"),
    ],
)
def test_the_most_accurate_is_deployed_where_it_is_clear(tmp_path, shares, method, says):
    advice = advise(tmp_path, rows(tmp_path, shares, n=1000))
    assert advice.method == method
    assert says in " ".join(advice.sentences)


@pytest.mark.parametrize(
    ("student", "method"), [(0.2, "distill"), (0.185, "distill"), (0.15, "features-logistic")]
)
def test_few_images_are_no_reason_for_a_worse_student(tmp_path, student, method):
    """Of 60 images none of the differences is clear."""
    shares = {"pixels-svm": 0.2, "features-logistic": 0.2, "distill": student}
    assert advise(tmp_path, rows(tmp_path, shares, n=60)).method == method


def test_a_model_that_is_not_saved_is_fitted_anew(tmp_path):
    advice = advise(tmp_path, rows(tmp_path, STRONG | {"gradients-svm": 0.99}))
    assert advice.method == "gradients-svm"
    assert f"fit it with the hyper-parameters in {tmp_path}" in advice.sentences[0]


@pytest.mark.parametrize("n", [1, 10, 49])
def test_few_test_images_decide_nothing(tmp_path, n):
    sentences = advise(tmp_path, rows(tmp_path, {"pixels-svm": 0, "distill": 1}, n=n)).sentences
    assert sentences[0].startswith("For now, deploy: distilled student")
    assert sentences[1].startswith(f"Undecided: {n} test images are too few")
    assert any(s.startswith("Whether pretraining paid is undecided") for s in sentences)


def test_few_test_images_do_not_prefer_a_worse_student(tmp_path):
    advice = advise(tmp_path, rows(tmp_path, {"distill": 0, "finetune": 0.25}, n=4))
    assert (advice.method, advice.ready) == ("finetune", "finetune")


@pytest.mark.parametrize("labels", ["to_label", "30suggested", "1pct"])
def test_who_gives_labels_in_a_file_may_draw_more_to_test_with(tmp_path, labels):
    run = tmp_path / "my photos"
    (undecided,) = (
        s for s in advise(run, rows(run, STRONG, n=8, labels=labels)).sentences if "too few" in s
    )
    command = f"python -m stages.suggest '{run}' --budget 50 --test"
    assert undecided.endswith(f"rows apart; to draw more: {command}") == (labels == "to_label")


def test_one_kind_of_rows_says_nothing_of_pretraining(tmp_path):
    for shares in ({"finetune": 0.9, "distill": 0.9}, {"supervised": 0.9}):
        assert not any(
            "retraining" in s for s in advise(tmp_path, rows(tmp_path, shares)).sentences
        )


def test_rows_without_a_test_have_no_advice(tmp_path):
    tested = rows(tmp_path, STRONG)
    untested = [{key: row[key] for key in row if key != "top1"} for row in tested]
    assert advise(tmp_path, untested) is None
    assert advice_text(tmp_path, untested) == ""
    assert advice_text(tmp_path, tested).startswith("1pct: Deploy: distilled student")


def test_artifacts_of_earlier_versions_cannot_be_compared(tmp_path):
    advice = advise(tmp_path, rows(tmp_path, STRONG | {"finetune": 0.99}, noted=False))
    assert advice.method == "finetune"  # the student may be worse
    assert advice.sentences[1] == (
        "Whether pretraining paid is undecided: +39.0 points over the best row without it (support"
        " vector machine on pixels, 60.0%)."
    )


def test_several_draws_are_compared_draw_by_draw_and_image_by_image(tmp_path):
    """Draws that agree leave what the test images leave: 10 points of 400 all of one kind."""
    shares = {"supervised": 0.5, "distill": 0.6}
    of = {row["stage"]: [] for row in rows(tmp_path, shares)}
    for row in rows(tmp_path, shares, seeds=(0, 1, 2)):
        of[row["stage"]].append(row)
    agreed = gain(tmp_path, of["distill"], of["supervised"])
    assert agreed.points == pytest.approx(10)
    assert 2.8 < agreed.half < 3.0  # 196 sqrt(0.1 * 0.9 / 400) = 2.94, and less by the shifted ones
    of["distill"][0]["top1"] = 0.9  # draws that disagree
    assert gain(tmp_path, of["distill"], of["supervised"]).half > 10
    assert gain(tmp_path, of["distill"][:1], of["supervised"][1:]).half is None  # nothing in common


@pytest.mark.parametrize("noted", [True, False])
def test_two_draws_that_agree_are_not_certain(tmp_path, noted):
    shares = {"supervised": 0.5, "distill": 0.52}
    made = rows(tmp_path, shares, n=50, seeds=(0, 2), noted=noted)
    of = [[row for row in made if row["stage"] == stage] for stage in ("distill", "supervised")]
    assert not gain(tmp_path, *of).clear


@pytest.mark.parametrize("changed", [None, 0.0, 0.3])
def test_the_interval_covers_the_difference_as_often_as_it_says(tmp_path, monkeypatch, changed):
    """Pairs of classifiers that differ by 6 points; 60 images; of one draw, or of two.

    Another draw changes so large a share of the answers, anew for each image.
    """
    rng, n, covered = np.random.default_rng(0), 60, 0
    monkeypatch.setattr(deployment, "_right", lambda run, row: dict(enumerate(row["right"])))

    def kinds() -> np.ndarray:
        return rng.choice(4, size=n, p=[0.5, 0.2, 0.16, 0.14])  # both, first, none, second

    for _ in range(200):
        draws = [kinds()]
        if changed is not None:
            draws.append(np.where(rng.random(n) < changed, kinds(), draws[0]))
        first, second = (
            [
                {"seed": seed, "top1": right.mean(), "right": right.tolist()}
                for seed, right in enumerate(answers)
            ]
            for answers in zip(
                *((kind <= 1, (kind == 0) | (kind == 3)) for kind in draws), strict=True
            )
        )
        difference = gain(tmp_path, first, second)
        covered += abs(difference.points - 6) <= difference.half
    assert 184 <= covered <= 200 - (changed is None)  # 95% of 200, and what chance adds


def test_a_damaged_file_is_one_line(tmp_path):
    made = rows(tmp_path, STRONG)
    (tmp_path / "distill-1pct-seed0/predictions.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"predictions\.npz is damaged"):
        advise(tmp_path, made)
