"""Steps at a large model's width on few of its layers: every cell is there, and what bytes predict follows from what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from avl import cli
from avl.bench import report
from avl.bench.roofline import Rates, Sizes, floor_ms
from avl.models import random_weights
from avl.policies import PromptShape, parse_policy
from avl.policies.cost import mean_cost


def test_every_cell_is_measured_and_kept(tmp_path, capsys):
    file = tmp_path / "widths.json"
    threads = torch.get_num_threads()
    arguments = ["bench", "--width-of", "llava-1.6-7b", "--scale", "0.05", "--repeats", "2", "--batch", "1", "4", "--json", str(file)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert torch.get_num_threads() == threads
    result = json.loads(file.read_text())
    assert result == json.loads(shown[-1])
    assert result["finished"]
    counts = sorted({1, threads})
    tokens = sorted({cell["n_image"] for cell in result["cells"]})
    assert len(tokens) == 2
    assert [(cell["n_image"], cell["batch"], cell["threads"]) for cell in result["cells"]] == [
        (image, batch, count) for image in tokens for batch in (1, 4) for count in counts
    ]
    for cell in result["cells"]:
        assert cell["arms"]["full"]["ratio"]["median"] == cell["arms"]["full"]["predicted"] == 1
        assert 1 <= cell["arms"]["evict"]["predicted"] <= cell["arms"]["avl"]["predicted"]
        assert all(arm["ms"]["median"] > 0 for arm in cell["arms"].values())
        shape = PromptShape(cell["n_image"], cell["n_text"], 6 * 3 * len(counts) + 1, 1)
        name = "llava-1.6-7b" if cell["n_image"] == tokens[1] else "llava-1.5-7b"
        config = random_weights.build(name, scale=0.05, layers=1).config
        rates = Rates(cell["copy_gb_s"] * 1e9, 1.0, {cell["batch"]: cell["weights_gb_s"] * 1e9})
        full = floor_ms(Sizes.of(config, 4), mean_cost(parse_policy("full"), shape), cell["batch"], rates)
        assert cell["arms"]["full"]["floor_ms"] == pytest.approx(full)
    assert {(found["n_image"], found["batch"], found["threads"]) for found in result["references"]} == {
        (image, 4, count) for image in tokens for count in counts
    }
    table = report.whole(result).splitlines()
    assert len(table) == 4 + len(result["cells"]) + len(result["references"])


def test_layers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"llava-1\.6-7b has 1 to 32"):
        random_weights.build("llava-1.6-7b", layers=33)
