"""Compile the Triton kernels for compute capability 9.0, which needs no GPU; run as a script, in a process that does not interpret."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from avl.kernels.core import triton as core_triton
from avl.kernels.layer import triton as layer_triton
from avl.kernels.window import triton as window_triton

INTS = {
    "n", "splits", "start", "stop", "merges", "first", "s_ib", "s_ig", "s_sb", "s_sg", "number", "prompt", "recent", "sinks", "image",
    "other", "vocabulary", "s_tb", "s_pb", "size", "capacity", "rows", "heads", "first_column", "first_slot",
}  # fmt: skip
FLOATS32 = {"p_part", "p_lse", "p_logits", "p_scores", "p_sums"}
INTS32 = {"p_index"}
INTS64 = {"p_token", "p_position", "p_length", "p_second", "p_slot", "p_token_idx", "p_entered"}


def compile_kernel(kernel, dtype: str, absent: set[str], **constants: object) -> None:
    """Compile `kernel` for tensors of `dtype`; pointers in `absent` are None, the last dimension of all tensors is contiguous."""
    signature, fixed, aligned = {}, dict.fromkeys(absent) | constants, {}
    for place, name in enumerate(kernel.arg_names):
        if name.startswith("s_") and name[-1] in "dn":
            fixed[name] = 1
        if name in fixed:
            signature[name] = "constexpr"
            continue
        if name.startswith("p_"):
            kind = "fp32" if name in FLOATS32 else "i32" if name in INTS32 else "i64" if name in INTS64 else dtype
            signature[name] = f"*{kind}"
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
        if name not in INTS and name not in ("scale", "eps"):
            aligned[(place,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items() if name in kernel.arg_names}
    source = ASTSource(kernel, signature, places, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 2})
    print(kernel.__name__, dtype, len(compiled.asm["cubin"]))


STORED = {"p_cos", "p_sin", "p_slot", "p_query_norm", "p_key_norm"}  # absent where no new token is stored
BARE = {"p_index", "p_length", "p_logits", *STORED}
split = {"D": 80, "PER_HEAD": False, "BLOCK_D": 128}
compile_kernel(core_triton.split_vector_kernel, "bf16", set(), H=32, SHARED=1, BLOCK_N=32, BLOCK_H=1, STAGES=3, **split)
compile_kernel(core_triton.split_vector_kernel, "bf16", STORED, H=32, SHARED=1, BLOCK_N=32, BLOCK_H=1, STAGES=3, **split)
compile_kernel(core_triton.split_vector_kernel, "fp32", BARE, H=40, SHARED=4, BLOCK_N=16, BLOCK_H=2, STAGES=1, **split)
matrix = {"H": 32, "SHARED": 4, "UPCAST": False, "BLOCK_M": 16, **split}
compile_kernel(core_triton.split_matrix_kernel, "bf16", set(), BLOCK_N=64, **matrix)
compile_kernel(core_triton.split_matrix_kernel, "bf16", STORED, BLOCK_N=64, **matrix)
compile_kernel(core_triton.split_matrix_kernel, "fp32", {"p_logits"}, BLOCK_N=16, **matrix)
combine = {"H": 40, "HEADS_PER_SCORE": 40, "D": 128, "BLOCK_H": 32, "BLOCK_W": 32, "BLOCK_D": 128}
compile_kernel(core_triton.combine_kernel, "bf16", set(), **combine)
compile_kernel(core_triton.combine_kernel, "fp16", {"p_scores", "p_sums", "p_logits"}, **combine)
compile_kernel(layer_triton.begin_step_kernel, "bf16", set(), N=5120, R=256, BLOCK=8192, BLOCK_R=256)
compile_kernel(layer_triton.add_rms_norm_kernel, "bf16", set(), N=5120, BLOCK=8192)
compile_kernel(layer_triton.add_rms_norm_kernel, "fp32", {"p_delta"}, N=4096, BLOCK=4096)
rotate = {"H": 32, "G": 8, "D": 128, "BLOCK_D": 128}
compile_kernel(layer_triton.rotate_and_store_kernel, "bf16", set(), **rotate)
compile_kernel(layer_triton.rotate_and_store_kernel, "fp16", {"p_slot", "p_query_norm", "p_key_norm"}, **rotate)
compile_kernel(layer_triton.silu_product_kernel, "bf16", set(), N=11008, BLOCK=1024)
compile_kernel(window_triton.enter_window_kernel, "fp32", set(), BOUNDED=True)
compile_kernel(window_triton.enter_window_kernel, "fp32", {"p_sums", "p_second"}, BOUNDED=False)
compile_kernel(window_triton.leave_window_kernel, "fp32", set(), BOUNDED=True, BLOCK=512)
compile_kernel(window_triton.leave_window_kernel, "fp32", {"p_sums"}, BOUNDED=True, BLOCK=512)
