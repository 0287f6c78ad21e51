"""Settings by environment variables: flags beat them, they beat defaults, and bad ones are told by name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.main import get_command

from avl import cli
from avl.cli import variables
from avl.ui import serve

ROOT = Path(__file__).resolve().parents[2]
PARAMS = get_command(cli._application(["page"])).params


@pytest.fixture
def start(monkeypatch, capsys):
    """``start("--port", "1")`` -> (status, what the page would be started with, what is said on stderr)."""
    for name in [name for name in os.environ if name.startswith("AVL_")]:
        monkeypatch.delenv(name)

    def run(*arguments, fails=None):
        asked = {}

        def served(name, **options):
            asked.update(options, name=name)
            if fails is not None:
                raise fails

        monkeypatch.setattr(serve, "serve", served)
        status = cli.main(arguments, only="page", program="app.py")
        return status, asked, capsys.readouterr().err

    return run


def test_every_flag_has_a_variable(start, monkeypatch):
    values = {
        "AVL_MODEL": "llava-1.5-7b", "AVL_REVISION": "v1", "AVL_DEVICE": "cuda:1", "AVL_DTYPE": "bf16", "AVL_DEVICE_MAP": "auto",
        "AVL_HOST": "0.0.0.0", "AVL_PORT": "8123", "AVL_SHARE": "1", "AVL_ALLOWED_HOSTS": "a.example, b.example",
        "AVL_TRUSTED_PROXIES": "10.0.0.0/8", "AVL_MAX_WAITING": "3", "AVL_MAX_TOKENS_PER_RUN": "1000", "AVL_MAX_SECONDS": "60",
        "AVL_STUCK_AFTER": "30", "AVL_UPLOAD_MB": "200", "AVL_METRICS": "false", "AVL_LOG_JSON": "true",
    }  # fmt: skip
    assert sorted(values) == sorted(variables.variable(param) for param in PARAMS if param.name != "help")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    status, asked, told = start()
    assert (status, told) == (0, "")
    limits = asked.pop("limits")
    assert (limits.waiting, limits.tokens, limits.run_seconds, limits.stuck_seconds, limits.disk_bytes) == (3, 1000, 60, 30, 200 << 20)
    assert asked == {
        "name": "llava-1.5-7b", "revision": "v1", "device": "cuda:1", "dtype": "bf16", "device_map": "auto", "host": "0.0.0.0",
        "port": 8123, "share": True, "allowed_hosts": ["a.example", "b.example"], "trusted_proxies": "10.0.0.0/8", "metrics": False,
        "log_json": True,
    }  # fmt: skip


def test_flags_beat_variables_and_empty_ones_are_none(start, monkeypatch):
    monkeypatch.setenv("AVL_MODEL", "llava-1.5-7b")
    monkeypatch.setenv("AVL_DTYPE", "bf16")
    monkeypatch.setenv("AVL_REVISION", "")
    monkeypatch.setenv("AVL_METRICS", "0")
    _, asked, told = start("--model", "tiny", "--metrics")
    assert (asked["name"], asked["dtype"], asked["revision"], asked["metrics"], told) == ("tiny", "bf16", None, True, "")
    assert start()[1]["name"] == "llava-1.5-7b"


@pytest.mark.parametrize(
    ("name", "value"),
    [("AVL_MAX_WAITING", "x"), ("AVL_MAX_WAITING", "5000"), ("AVL_PORT", "7860.5"), ("AVL_METRICS", "perhaps"), ("AVL_UPLOAD_MB", "1")],
)
def test_a_bad_value_is_told_by_its_variable(start, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    status, asked, told = start()
    assert (status, asked) == (1, {})
    assert told.startswith(f"app.py: {name}={value!r}: ")
    assert told.count("\n") == 1


def test_what_is_refused_later_names_the_variable_too(start, monkeypatch):
    monkeypatch.setenv("AVL_DEVICE", "gpu")
    monkeypatch.setenv("AVL_DTYPE", "bf16")
    status, _, told = start(fails=ValueError("device='gpu' is unknown: use auto, cpu, cuda or cuda:N"))
    assert (status, told) == (
        1, "app.py: device='gpu' is unknown: use auto, cpu, cuda or cuda:N (AVL_DEVICE is set in the environment)\n",
    )  # fmt: skip
    status, _, told = start("--device", "gpu", fails=ValueError("device='gpu' is unknown"))
    assert told == "app.py: device='gpu' is unknown\n"
    with pytest.raises(KeyError):
        start(fails=KeyError("a defect keeps its traceback"))


def test_a_misspelled_variable_is_noticed(start, monkeypatch):
    monkeypatch.setenv("AVL_MODLE", "llava-1.5-7b")
    monkeypatch.setenv("AVL_SOMETHING_OF_ANOTHER_PROGRAM", "1")
    status, asked, told = start()
    assert (status, asked["name"]) == (0, "tiny")
    assert told == "app.py: AVL_MODLE is set in the environment, but there is no such setting: AVL_MODEL may be meant\n"


def test_other_commands_take_no_variables(monkeypatch, capsys):
    """A measurement must not depend on what a shell happens to hold."""
    monkeypatch.setenv("AVL_MODEL", "no such model")
    monkeypatch.setenv("AVL_BATCH", "x")
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert ("AVL_MODEL" in capsys.readouterr().out) == (name == "page")


def test_the_readme_s_table_is_that_of_the_options():
    (table,) = re.findall(r"<!-- settings: begin -->\n(.*?)\n<!-- settings: end -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table == variables.table(PARAMS)
