"""The public API: what it refuses, in which words, and which implementation it chooses."""

import pytest
import torch
from kernel_cases import Case, make

import avl.kernels
from avl.kernels import core_attention, resolve_impl

ROWS = Case(2, 4, 2, 10, 5, 8)


def arguments(**changes):
    inputs = make(ROWS)
    given = {"query": inputs.query, "key": inputs.key, "value": inputs.value, "index": inputs.index, "length": None}
    return given | changes


REFUSED = [
    ("query", [1.0], TypeError, r"query is a list, but must be a torch\.Tensor"),
    ("query", torch.zeros(2, 4, 3, 8), ValueError, r"query has shape \[2, 4, 3, 8\].*one query per row"),
    ("query", torch.zeros(2, 3, 8), ValueError, r"query has 3 heads, but must have a multiple of the 2 KV heads"),
    ("query", torch.zeros(2, 4, 8, dtype=torch.int64), TypeError, r"query has dtype torch\.int64"),
    ("query", torch.zeros(2, 4, 8).half(), TypeError, r"key has dtype torch\.float32, but must be float16 with query in torch\.float16"),
    ("query", torch.zeros(2, 0, 8), ValueError, r"no dimension of size 0"),
    ("key", torch.zeros(3, 2, 10, 8), ValueError, r"key has shape \[3, 2, 10, 8\].*B=2 and D=8"),
    ("key", None, TypeError, r"key is None"),
    ("value", torch.zeros(2, 2, 9, 8), ValueError, r"value has shape \[2, 2, 9, 8\].*B=2, G=2, L=10 and D=8"),
    ("value", torch.zeros(2, 2, 10, 8, device="meta"), ValueError, r"value is on meta, but must be on the device of query, cpu"),
    ("index", torch.zeros(2, 3, 5, dtype=torch.int64), ValueError, r"index has shape \[2, 3, 5\].*B=2 and G=2"),
    (
        "index",
        torch.zeros(2, 0, dtype=torch.int64),
        ValueError,
        r"index has shape \[2, 0\].*no dimension of size 0; length=0 reads nothing",
    ),
    ("index", torch.zeros(2, 5), TypeError, r"index has dtype torch\.float32, but must be int32 or int64"),
    ("index", [[0]], TypeError, r"index is a list"),
    ("length", torch.zeros(3, dtype=torch.int64), ValueError, r"length has shape \[3\].*B=2"),
    ("length", torch.zeros(2), TypeError, r"length has dtype torch\.float32"),
    ("length", 3, TypeError, r"length is a int"),
    ("length", torch.zeros(2, dtype=torch.int64, device="meta"), ValueError, r"length is on meta"),
    ("sums", 1.0, TypeError, r"sums is a float, but must be a torch\.Tensor or None"),
    ("sums", torch.zeros(2, 2, 3), ValueError, r"sums has shape \[2, 2, 3\], but must be \[B, W'\] as the scores are"),
    ("sums", torch.zeros(3, 3), ValueError, r"sums has shape \[3, 3\], but must be \[B, W'\] or \[B, G, W'\] with B=2 and G=2"),
    ("sums", torch.zeros(2, 6), ValueError, r"sums has shape \[2, 6\].*from 1 to n=5"),
    ("sums", torch.zeros(2, 3).half(), TypeError, r"sums has dtype torch\.float16, but must be float32 with query in torch\.float32"),
    ("sums", torch.zeros(2, 6)[:, ::2], ValueError, r"sums has strides \[6, 2\].*contiguous"),
    ("scores", (0, 6), ValueError, r"scores is \(0, 6\).*0 <= start <= stop <= n=5"),
    ("scores", (3, 2), ValueError, r"scores is \(3, 2\)"),
    ("scores", "yes", ValueError, r"scores is 'yes'"),
    ("impl", "cuda", ValueError, r"impl is 'cuda', but must be one of 'auto', 'triton', 'numba', 'reference'"),
]


@pytest.mark.parametrize(("name", "wrong", "error", "sentence"), REFUSED, ids=[f"{i}-{case[0]}" for i, case in enumerate(REFUSED)])
def test_core_attention_wrong_argument_is_named(name: str, wrong: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        core_attention(**arguments(**{name: wrong}))


def test_core_attention_unchanged_arguments_are_accepted() -> None:
    """What the tests above change is what is refused."""
    out, scores = core_attention(**arguments(), sums=torch.zeros(2, 3), scores=(2, 5))
    assert out.shape == (2, 4, 8)
    assert scores is not None


@pytest.mark.parametrize("columns", [(0, 4), (3, 5)])
def test_core_attention_scores_that_miss_the_summed_columns_are_refused(columns: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"with sums it must hold the last 3 columns and end at n=5"):
        core_attention(**arguments(), sums=torch.zeros(2, 3), scores=columns)


def test_core_attention_sums_have_the_kv_heads_of_the_scores() -> None:
    with pytest.raises(ValueError, match=r"sums has shape \[2, 3\], but must be \[B, G, W'\] as the scores are"):
        core_attention(**arguments(), sums=torch.zeros(2, 3), group_scores=True)
    core_attention(**arguments(), sums=torch.zeros(2, 2, 3), group_scores=True)


@pytest.mark.parametrize(("entry", "length"), [(10, None), (-1, None), (99, [3, 5])])
def test_check_index_slot_out_of_range_is_named(entry: int, length: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(length=None if length is None else torch.tensor(length))
    given["index"][1, 4] = entry
    with pytest.raises(ValueError, match=rf"index\[1, 4\] is {entry}, but must be a slot from 0 to 9"):
        core_attention(**given, check_index=True)
    monkeypatch.setattr(avl.kernels, "debug", True)
    with pytest.raises(ValueError, match=r"index\[1, 4\]"):
        core_attention(**given)


def test_check_index_garbage_behind_length_passes() -> None:
    given = arguments(length=torch.tensor([5, 4]))
    given["index"][1, 4] = 99
    core_attention(**given, check_index=True)


@pytest.mark.parametrize("length", [[6, 1], [-1, 1]])
def test_check_index_length_out_of_range_is_named(length: list[int]) -> None:
    with pytest.raises(ValueError, match=r"length is .*, but every entry must be from 0 to n=5"):
        core_attention(**arguments(length=torch.tensor(length)), check_index=True)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_core_attention_length_beyond_the_index_reads_all_of_it(kv_heads: int, impl: str, device: torch.device) -> None:
    inputs = make(Case(2, 4, kv_heads, 10, 5, 8), device)
    expected, _ = core_attention(*inputs.arguments(), impl=impl)
    actual, _ = core_attention(*inputs.arguments()[:4], torch.tensor([7, 2**20], device=device), impl=impl)
    torch.testing.assert_close(actual, expected)


def test_core_attention_without_validation_gives_the_same() -> None:
    inputs = make(Case(2, 4, 2, 10, 5, 8, lengths=(5, 2)))
    for checked, unchecked in zip(
        core_attention(*inputs.arguments(), scores=True), core_attention(*inputs.arguments(), scores=True, validate=False), strict=True
    ):
        assert torch.equal(checked, unchecked)


def test_resolve_impl_auto_on_a_cpu_is_numba_where_supported_and_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_impl("cpu") == "numba"
    assert resolve_impl("cpu", dtype=torch.float16, head_size=256) == "numba"
    assert resolve_impl("cpu", dtype=torch.float64) == "reference"
    assert resolve_impl("cpu", head_size=257) == "reference"
    monkeypatch.setattr(avl.kernels, "numba_trouble", lambda dtype: "numba cannot be imported (ImportError: none)")
    assert resolve_impl("cpu") == "reference"
    with pytest.raises(RuntimeError, match=r"its kernels cannot be used \(numba cannot be imported"):
        resolve_impl("cpu", "numba")


def test_resolve_impl_numba_by_name_never_falls_back() -> None:
    with pytest.raises(RuntimeError, match="numba's kernels need 'cpu'"):
        resolve_impl("cuda", "numba")
    with pytest.raises(TypeError, match=r"impl='numba' does not support torch\.float64"):
        resolve_impl("cpu", "numba", dtype=torch.float64)
    with pytest.raises(ValueError, match="no kernel of numba for this operator, window"):
        avl.kernels.window_ops("cpu", "numba")


def test_core_attention_that_needs_gradients_runs_in_torch() -> None:
    given = arguments(impl="auto")
    given["query"] = given["query"].clone().requires_grad_()
    core_attention(**given)[0].sum().backward()
    assert given["query"].grad is not None


def test_resolve_impl_by_name_is_that_one() -> None:
    assert resolve_impl(torch.device("cpu"), "reference") == "reference"
    assert resolve_impl("cuda", "reference") == "reference"


def test_resolve_impl_auto_on_a_gpu_takes_triton_where_supported_and_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avl.kernels, "_triton_error", lambda: None)
    monkeypatch.setattr(avl.kernels, "_checked", {})
    asked = []
    monkeypatch.setattr(avl.kernels, "_check_triton", lambda *what: asked.append(what))
    assert resolve_impl("cuda") == "triton"
    assert resolve_impl("cuda", dtype=torch.bfloat16, head_size=256) == "triton"
    assert asked == [(torch.device("cuda"), torch.float16, 64), (torch.device("cuda"), torch.bfloat16, 256)]
    assert resolve_impl("cuda", dtype=torch.float64) == "reference"
    assert resolve_impl("cuda", dtype=torch.float16, head_size=257) == "reference"
    assert len(asked) == 2
    assert resolve_impl("cuda") == "triton"
    assert len(asked) == 2  # once each
    monkeypatch.setattr(avl.kernels, "_checked", {})
    monkeypatch.setattr(avl.kernels, "_check_triton", lambda *what: "ArithmeticError: the norm is off")
    assert resolve_impl("cuda", dtype=torch.float16) == "reference"
    assert resolve_impl("cuda", "triton") == "triton"  # asked for by name
    assert avl.kernels.triton_trouble("cuda") == "ArithmeticError: the norm is off"
    monkeypatch.setattr(avl.kernels, "_triton_error", lambda: "ImportError: none")
    assert resolve_impl("cuda") == "reference"


def test_trouble_where_no_gpu_was_reached_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that leaves CUDA to its children would hand its own trouble down to them."""
    monkeypatch.setattr(avl.kernels, "_triton_error", lambda: None)
    monkeypatch.setattr(avl.kernels, "_checked", {})
    monkeypatch.setattr(avl.kernels, "_check_triton", lambda *what: "AssertionError: libcuda.so cannot be found")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert resolve_impl("cuda", dtype=torch.float16) == "reference"
    assert not avl.kernels._checked
    monkeypatch.setattr(avl.kernels, "_check_triton", lambda *what: None)
    assert resolve_impl("cuda", dtype=torch.float16) == "triton"
    monkeypatch.setattr(avl.kernels, "_checked", {})
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(avl.kernels, "_check_triton", lambda *what: "ArithmeticError: the norm is off")
    assert resolve_impl("cuda", dtype=torch.float16) == "reference"
    assert len(avl.kernels._checked) == 1


def test_resolve_impl_triton_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avl.kernels, "_triton_error", lambda: "ImportError: no module")
    with pytest.raises(RuntimeError, match=r"Triton cannot be imported .*no module.*install triton"):
        core_attention(**arguments(impl="triton"))
    with pytest.raises(TypeError, match=r"impl='triton' does not support torch\.float64"):
        resolve_impl("cuda", "triton", dtype=torch.float64)
    with pytest.raises(ValueError, match="head sizes up to 256, not 320"):
        resolve_impl("cuda", "triton", head_size=320)
    monkeypatch.setattr(avl.kernels, "_triton_error", lambda: None)
    with pytest.raises(RuntimeError, match="the tensors are on 'mps' and Triton needs 'cuda'"):
        resolve_impl("mps", "triton")


def test_public_names_are_no_names_of_files() -> None:
    """Importing kernels/x.py would replace avl.kernels.x by the module."""
    from pathlib import Path

    folder = Path(avl.kernels.__path__[-1])
    files = {file.stem for file in folder.iterdir()}
    assert {"core", "layer", "window", "selfcheck"} <= files
    assert not files & set(avl.kernels.__all__)
    assert not (folder / "__init__.py").exists()
