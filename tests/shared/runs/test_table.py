"""Tables read, checked and written again."""

from datetime import date

import pytest

from shared.config.schema import Config
from shared.runs.table import dump_table, load_table, settable_options
from shared.runtime.errors import UserError
from tests.support.tables import write


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rowz": {}}, "unknown key: rowz; did you mean rows?"),
        ({"title": "left out"}, "title missing"),
        ({"rows": {}}, "rows must be a mapping"),
        ({"rows": {"a": 3}}, "rows: a must be a mapping"),
        ({"rows": {"a": {"pretrain.temprature": 1}}}, "did you mean pretrain.temperature?"),
        ({"rows": {"a": {"seed": 1}}}, "unknown option in rows: a: seed"),
        ({"rows": {"a": {"distill.teacher": "x"}}}, "distill.teacher is for the command line"),
        ({"rows": {"a": {"method": "finetun"}}}, "did you mean finetune?"),
        ({"rows": {"a": {"labels": "1pct"}}}, "row 'a' and column '1%' both set labels"),
        ({"seeds": 0}, "seeds must be a number"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"title": ["a"]}, "title must be one line"),
        ({"paper": 3}, "paper must have source, and cells"),
        ({"paper": {"source": "x", "cells": {"a": 1}}}, "paper must have source, and cells"),
        ({"rows": {"a": {"labels": "2perclas"}}}, "labels in rows: a must be"),
        ({"rows": {"a": {"data.train": "x"}}}, "data.train is for the command line"),
        ({"seeds": ["x"]}, "seeds must be a number"),
        ({"metric": "top2"}, "unknown metric: top2; did you mean"),
        ({"against": "b"}, "unknown row in against: b"),
        ({"against": [["a"]]}, "unknown row in against: ['a']"),
        ({"worth": {"a": 1}}, "unknown row in worth: {'a': 1}"),
        ({"metric": ["top1"]}, "unknown metric: ['top1']"),
        ({"metric": {"top1": 1}}, "unknown metric: {'top1': 1}"),
        ({"rows": {"a": {"method": ["finetune"]}}}, "unknown method in rows: a: ['finetune']"),
        ({"seeds": 10**12}, "seeds must be 1,000 or fewer"),
        ({"seeds": [10**12]}, "seeds must be a number"),
        ({"seeds": float("inf")}, "seeds must be a number"),
        ({"title": "a\x1b[31m"}, "title must be one line"),
        ({"rows": {str(i): {} for i in range(1001)}}, "rows and columns have 1,001 cells"),
        (
            {
                "rows": {"a": {"pretrain.seed": 1}},
                "vary": {"pretrain.seed": [0, 1, 2, 3, 4]},
            },
            "vary sets pretrain.seed, which row 'a' or column",
        ),
        ({"seeds": True}, "seeds must be a number"),
        ({"seeds": [True, False]}, "seeds must be a number"),
        ({"rows": {True: {}, "True": {}}}, "rows has two labels that read the same"),
        (
            {"paper": {"source": "x", "cells": {"a": {"1%": [1]}}}},
            "a cell must be a number or text",
        ),
        (
            {"paper": {"source": "x", "cells": {"a": {"1%": float("nan")}}}},
            "a cell must be a number",
        ),
        ({"vary": {"pretrain.seed": 3}}, "must be a list of one value for each of the 5 seeds"),
        (
            {"rows": {"a": {"data.split_seed": date(2001, 12, 14)}}},
            "rows: a: data.split_seed has a date; write it as text, in quotes: '2001-12-14'",
        ),
        ({"rows": {"a": {"method": b"x"}}}, "rows: a: method has a bytes"),
        ({"columns": {"a": {"labels": {1, 2}}}}, "columns: a: labels has a set"),
        ({"seeds": 1, "vary": {"pretrain.seed": [date(2001, 12, 14)]}}, "vary: pretrain.seed has"),
        ({"rows": {date(2001, 12, 14): {}}}, "rows has a date"),
        (
            {"paper": {"source": date(2001, 2, 3), "cells": {}}},
            "paper: source has a date; write it as text",
        ),
        ({"paper": {"source": 3, "cells": {}}}, "paper: source must be one line of text, got 3"),
        ({"worth": "a", "metric": "nll"}, "worth is of accuracies: metric must be top1 or top5"),
    ],
)
def test_bad_tables(table, message, tmp_path):
    with pytest.raises(UserError) as error:
        load_table(write(tmp_path, **table))
    assert message in str(error.value)
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_title_may_have_any_space(tmp_path):
    title = "\u624b\u672c\u3000\u4e00 of 10\u202f000"
    assert load_table(write(tmp_path, title=title)).title == title


def test_unknown_table(tmp_path):
    with pytest.raises(UserError, match=r"no table 'nowhere'; there are .*label_efficiency"):
        load_table("nowhere")
    (tmp_path / "broken.yaml").write_text("rows: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not YAML of the form"):
        load_table(str(tmp_path / "broken.yaml"))


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = load_table("pretrainings")
    (tmp_path / "pretrainings.yaml").write_text(dump_table(table))
    assert load_table(str(tmp_path / "pretrainings.yaml")) == table


def test_init_may_be_set_and_other_paths_may_not():
    options = settable_options(Config())
    assert {"finetune.init", "linear.init", "pretrain.temperature"} <= options.keys()
    assert {"distill.teacher", "data.train", "pretrain.log_every_steps"}.isdisjoint(options)


def test_label_files_of_one_name_differ_by_their_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text(f"file,label\n1.png,{folder}\n")
    (tmp_path / "b/x.csv").write_bytes((tmp_path / "a/x.csv").read_bytes())
    columns = {"1": {"labels": "a/x.csv"}, "2": {"labels": "./a/x.csv"}, "3": {"labels": "b/x.csv"}}
    load_table(write(tmp_path, rows={"a": {}}, columns=columns))
    columns["4"] = {"labels": "c/x.csv"}
    with pytest.raises(UserError, match="have the same name"):
        load_table(write(tmp_path, rows={"a": {}}, columns=columns))
    varied = {"rows": {"a": {}}, "columns": {"b": {}}, "seeds": 2}
    load_table(write(tmp_path, **varied, vary={"labels": ["a/x.csv", "b/x.csv"]}))
    with pytest.raises(UserError, match=r"labels in vary: .* have the same name"):
        load_table(write(tmp_path, **varied, vary={"labels": ["a/x.csv", "c/x.csv"]}))
