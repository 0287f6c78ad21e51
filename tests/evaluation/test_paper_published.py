"""The paper's numbers agree with one another wherever the paper prints them twice, and tables are made of the right policies."""

from __future__ import annotations

import pytest

from avl.evaluation.paper.methods import methods
from avl.evaluation.paper.published import AVERAGES_2, BENCHMARKS, FASTV, FULL, H2O, MODELS, OURS, OURS_IS, TABLE_2, TABLE_3, paper_model
from avl.policies import AVL, Full, PromptShape
from avl.policies.cost import stored_after_prefill
from avl.policies.presets import PRESETS
from avl.policies.presets import TABLE_3 as SETTINGS

NAMES = list(BENCHMARKS)


@pytest.mark.parametrize("model", MODELS)
def test_tables_agree_where_they_print_the_same(model: str):
    table_2, table_3 = TABLE_2[model], TABLE_3[model]
    assert table_3[0].scores == table_2[FULL][:4]
    for method, average in AVERAGES_2[model].items():
        assert sum(table_2[method]) / 5 == pytest.approx(average, abs=0.0101), f"{method}: a digit is wrong"  # some are cut, not rounded
    for place, score in zip(OURS_IS[model][:4], table_2[OURS], strict=False):
        assert table_3[1 + place].scores[table_2[OURS].index(score)] == score, "the setting has another score"


@pytest.mark.parametrize("model", MODELS)
def test_table_3_is_the_presets(model: str):
    rows = methods(["table3"], model)
    assert isinstance(rows[0].policy, Full)
    asked = next(settings for name, _, settings in SETTINGS if name == model)
    assert [(row.policy.S, row.policy.C, row.policy.P, row.policy.T) for row in rows[1:]] == [(s, c, p, t) for s, c, _, p, t in asked]
    assert rows[-1].policy == PRESETS[model]
    assert "flickr30k_test" not in rows[0].paper


def test_table_2_stores_half_and_mixes_rows():
    shape = PromptShape(576, 44, 32, 32)
    rows = {row.label: row for row in methods(["table2"], "llava-1.6-7b")}
    assert list(rows) == [FULL, FASTV, H2O, OURS]
    for label in (FASTV, H2O):
        policy = rows[label].of("docvqa_val", shape)
        assert stored_after_prefill(policy, shape) / (32 * 620) == pytest.approx(0.5, abs=1 / 620)
    assert rows[H2O].of("docvqa_val", shape).recent == 75
    ours = {name: rows[OURS].of(name, shape) for name in NAMES}
    assert ours["docvqa_val"] == AVL(S=45, C=30, K=3, P=90)
    assert ours["ocrbench"] == AVL(S=45, C=30, K=3, P=90, T=70)
    assert ours["nocaps_val"] == AVL(S=40)
    assert rows[OURS].of("somebody_elses", shape) == PRESETS["llava-1.6-7b"]


def test_policies_of_ones_own_stand_below_full_attention_once():
    rows = methods(["avl:S=40,C=20", "full", "table3", "avl:S=40"], None)
    assert [row.label for row in rows][:2] == ["Full attention", "A-VL S=40 C=20 K=3"]
    assert len({row.policy for row in rows}) == len(rows)
    assert not any(row.paper for row in rows), "the paper has no numbers of this model"
    with pytest.raises(ValueError, match="A-VL has no parameter"):
        methods(["avl:Z=1"], None)


def test_the_papers_models_by_either_name():
    assert paper_model("llava-1.5-7b") == paper_model("llava-hf/llava-1.5-7b-hf") == "llava-1.5-7b"
    assert paper_model("tiny") is None
