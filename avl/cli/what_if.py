"""``avl what-if``."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

import typer

from avl.cli.options import Json, policy_names, policy_spec
from avl.policies import parse_policy


def what_if(
    model: Annotated[
        str, typer.Option(help="whose sizes: llava-1.5-7b, llava-1.6-34b, qwen2.5-vl-7b, …; a wrong one lists them")
    ] = "llava-1.6-7b",
    gpu: Annotated[str, typer.Option(help="t4, l4, a10g, a100-80, h100, h200, rtx-4090, …, or here: this machine, measured now")] = "h100",
    batch: Annotated[str, typer.Option(metavar="ROWS,…", help="rows decoded at once")] = "1,8,32",
    image_tokens: Annotated[int | None, typer.Option(help="default: those of the model's usual picture")] = None,
    text_tokens: Annotated[int, typer.Option(help="system prompt and question")] = 65,
    new_tokens: Annotated[int, typer.Option(help="of the answer")] = 128,
    policy: Annotated[
        str | None,
        typer.Option(
            parser=policy_spec, metavar="POLICY", help=f"{policy_names()}, such as avl:S=45,C=30; default: the paper's for the model"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Predict time per step, memory and the largest batch of a model on a GPU, from sizes alone: the floor that a roofline gives."""
    try:
        rows = [int(one) for one in batch.split(",")]
    except ValueError:
        raise ValueError(f"--batch {batch!r} is no list of whole numbers, such as 1,8,32") from None
    from avl.bench.here import HERE, this_machine
    from avl.bench.what_if import known, machine_called
    from avl.bench.what_if import what_if as predict

    sizes = known(model)
    machine = this_machine() if gpu == HERE else machine_called(gpu)
    chosen = parse_policy(policy) if policy else None
    found = predict(sizes, machine, rows, n_image=image_tokens, n_text=text_tokens, new_tokens=new_tokens, policy=chosen)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(json_format.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """Return a prediction as text."""
    model, machine, request, largest = found["model"], found["machine"], found["request"], found["largest"]
    rate = f"{machine['bytes_per_s'] / 1e9:.0f} GB/s, {machine['flops'] / 1e12:.4g} TFLOP/s ({machine['source']})"
    lines = [
        f"{model['label']} on {machine['label']}: {rate}",
        f"{request['n_image']} image + {request['n_text']} text + {request['new_tokens']} new tokens; "
        f"weights {found['weights']['bytes'] / 1e9:.1f} GB, KV cache {model['token_bytes'] / 2**10:.0f} KiB a token; {request['label']}",
        "",
        f"{'batch':>5}{'full':>12}{'policy':>12}{'speedup':>9}{'KV full':>12}{'KV policy':>12}  needs in all",
    ]
    for row in found["rows"]:
        full, other = row["full"], row["policy"]
        needs = " / ".join(f"{one['need_bytes'] / 1e9:.1f} GB{'' if one['fits'] else ' (does not fit)'}" for one in (full, other))
        lines.append(
            f"{row['batch']:>5}{full['ms']:>9.2f} ms{other['ms']:>9.2f} ms{row['speedup']:>8.2f}x"
            f"{full['kv_bytes'] / 1e9:>9.2f} GB{other['kv_bytes'] / 1e9:>9.2f} GB  {needs}"
        )
    both = [f"{largest[name]['batch']} ({largest[name]['tokens_per_s']:.0f} tokens/s)" for name in ("full", "policy")]
    lines += ["", f"Largest batch: {both[0]} with full attention, {both[1]} with the policy."]
    for point in found["measured"]:
        where = f"{point['hardware']}, {point['date']}, {point['n_image']} image tokens, batch {point['batch']}"
        lines.append(f"Measured on {where}: {point['label']}, {point['ms']:.2f} ms")
    return "\n".join([*lines, *found["notes"], *found["left_out"]])
