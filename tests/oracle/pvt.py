"""A slow, obvious second opinion on PVTv2: the forward pass from bare tensors, and channels cut out of them by hand.

Written from METHOD.md, "Variants named by the letter", and the PVTv2 paper; shares nothing with the code it checks.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
OUTER_EPS, INNER_EPS = 1e-6, 1e-5


def depths_of(state: State) -> list[int]:
    stages = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("stages."))
    return [
        1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"stages.{s}.blocks.")) for s in range(stages)
    ]


def places(state: State) -> list[tuple[int, str]]:
    """(stage, stem) of every block, in order."""
    return [(s, f"stages.{s}.blocks.{i}") for s, depth in enumerate(depths_of(state)) for i in range(depth)]


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def logits(
    state: State, images: Tensor, heads: list[int], scales: list[float], masked: tuple[int, list[int]] | None = None,
    skipped: tuple[str, ...] = (),
) -> Tensor:  # fmt: skip
    """(B, classes). heads and softmax scale by stage; `masked`: attention channels of a block to hold at 0.

    `skipped`: half-blocks to leave out, such as `stages.1.blocks.0/A`.
    """
    x = images
    number = -1
    for stage, depth in enumerate(depths_of(state)):
        stem = "patch_embed" if stage == 0 else f"stages.{stage}.downsample"
        kernel = state[f"{stem}.proj.weight"].shape[-1]
        x = F.conv2d(
            x, state[f"{stem}.proj.weight"], state[f"{stem}.proj.bias"], stride=4 if stage == 0 else 2,
            padding=kernel // 2,
        )  # fmt: skip
        B, _, H, W = x.shape
        x = norm(state, f"{stem}.norm", x.permute(0, 2, 3, 1).reshape(B, H * W, -1), INNER_EPS)
        for index in range(depth):
            number += 1
            p = f"stages.{stage}.blocks.{index}"
            ratio = state[f"{p}.attn.sr.weight"].shape[-1] if f"{p}.attn.sr.weight" in state else 0
            linear = ratio == 1  # a convolution of one pixel: keys from a map pooled to 7 by 7
            if f"{p}/A" not in skipped:
                y = norm(state, f"{p}.norm1", x, OUTER_EPS)
                q = F.linear(y, state[f"{p}.attn.q.weight"], state.get(f"{p}.attn.q.bias"))
                if ratio:
                    grid = y.transpose(1, 2).reshape(B, -1, H, W)
                    grid = F.adaptive_avg_pool2d(grid, 7) if linear else grid
                    y = F.conv2d(grid, state[f"{p}.attn.sr.weight"], state[f"{p}.attn.sr.bias"], stride=ratio)
                    y = norm(state, f"{p}.attn.norm", y.flatten(2).transpose(1, 2), INNER_EPS)
                    y = F.gelu(y) if linear else y
                k, v = F.linear(y, state[f"{p}.attn.kv.weight"], state.get(f"{p}.attn.kv.bias")).chunk(2, -1)
                if masked is not None and masked[0] == number:
                    q, k, v = (t.clone() for t in (q, k, v))
                    for t in (q, k, v):
                        t[..., masked[1]] = 0
                outs = []
                for qh, kh, vh in zip(*(t.chunk(heads[stage], -1) for t in (q, k, v)), strict=True):
                    outs.append((qh @ kh.transpose(1, 2) * scales[stage]).softmax(-1) @ vh)
                x = x + F.linear(torch.cat(outs, -1), state[f"{p}.attn.proj.weight"], state[f"{p}.attn.proj.bias"])
            if f"{p}/F" not in skipped:
                y = norm(state, f"{p}.norm2", x, OUTER_EPS)
                y = F.linear(y, state[f"{p}.mlp.fc1.weight"], state[f"{p}.mlp.fc1.bias"])
                y = y.transpose(1, 2).reshape(B, -1, H, W)
                y = F.relu(y) if linear else y
                y = F.conv2d(
                    y, state[f"{p}.mlp.dwconv.weight"], state[f"{p}.mlp.dwconv.bias"], padding=1, groups=y.shape[1]
                )
                y = F.gelu(y.flatten(2).transpose(1, 2))
                x = x + F.linear(y, state[f"{p}.mlp.fc2.weight"], state[f"{p}.mlp.fc2.bias"])
        x = norm(state, f"stages.{stage}.norm", x, OUTER_EPS).transpose(1, 2).reshape(B, -1, H, W)
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])


def keep(state: State, key: str, kept: list[int]) -> State:
    """The tensors with only `kept` of a residual, ffn or reduction group left."""
    component, place = key.split(".")
    rows: list[str] = []  # tensors whose first axis holds the channels
    columns: list[str] = []  # whose second does
    if component == "residual":
        stage = int(place)
        stem = "patch_embed" if stage == 0 else f"stages.{stage}.downsample"
        rows += [f"{stem}.proj.weight", f"{stem}.proj.bias", f"{stem}.norm.weight", f"{stem}.norm.bias"]
        rows += [f"stages.{stage}.norm.weight", f"stages.{stage}.norm.bias"]
        for own, p in places(state):
            if own != stage:
                continue
            for name in ("norm1", "norm2", "attn.proj", "mlp.fc2"):
                rows += [f"{p}.{name}.weight", f"{p}.{name}.bias"]
            columns += [f"{p}.attn.q.weight", f"{p}.mlp.fc1.weight"]
            columns.append(f"{p}.attn.sr.weight" if f"{p}.attn.sr.weight" in state else f"{p}.attn.kv.weight")
        last = stage + 1 == len(depths_of(state))
        columns.append("head.weight" if last else f"stages.{stage + 1}.downsample.proj.weight")
    else:
        _, p = places(state)[int(place)]
        if component == "ffn":
            rows += [f"{p}.mlp.{n}.{t}" for n in ("fc1", "dwconv") for t in ("weight", "bias")]
            columns.append(f"{p}.mlp.fc2.weight")
        else:
            rows += [f"{p}.attn.{n}.{t}" for n in ("sr", "norm") for t in ("weight", "bias")]
            columns.append(f"{p}.attn.kv.weight")
    return {
        name: tensor[kept] if name in rows else tensor[:, kept] if name in columns else tensor
        for name, tensor in state.items()
    }


def width_of(state: State, key: str) -> int:
    component, place = key.split(".")
    if component == "residual":
        return len(state[f"stages.{place}.norm.weight"])
    _, p = places(state)[int(place)]
    name = {"attention": "attn.q.weight", "ffn": "mlp.fc1.weight", "reduction": "attn.sr.weight"}[component]
    return len(state[f"{p}.{name}"])


def keys_of(state: State) -> list[str]:
    keys = [f"residual.{stage}" for stage in range(len(depths_of(state)))]
    for b, (_, p) in enumerate(places(state)):
        keys += [f"attention.{b}", f"ffn.{b}"] + [f"reduction.{b}"] * (f"{p}.attn.sr.weight" in state)
    return keys


def kl(q_logits: Tensor, p_logits: Tensor) -> float:
    log_q, log_p = q_logits.log_softmax(-1), p_logits.log_softmax(-1)
    return float((log_q.exp() * (log_q - log_p)).sum())


def kl_scores(state: State, images: Tensor, heads: list[int]) -> dict[str, Tensor]:
    """Eq. 1 for every channel, one at a time, in nats summed over the images."""
    dims = [width_of(state, f"attention.{sum(depths_of(state)[:s])}") for s in range(len(heads))]
    scales = [(dim / h) ** -0.5 for dim, h in zip(dims, heads, strict=True)]
    whole = logits(state, images, heads, scales)
    scores = {}
    for key in keys_of(state):
        width, values = width_of(state, key), []
        for c in range(width):
            if key.startswith("attention"):
                p = logits(state, images, heads, scales, masked=(int(key.split(".")[1]), [c]))
            else:
                p = logits(keep(state, key, [i for i in range(width) if i != c]), images, heads, scales)
            values.append(kl(whole, p))
        scores[key] = torch.tensor(values, dtype=torch.float64)
    return scores
