"""The layers that a repair fits in each family of models, and their targets.

ViT: q, k, v and fc1 to those of the original, in any basis, and the heads to its centred logits. With statistics, a
token's squared error counts by the root of how strongly the output reacts to what is written at its position (in late
blocks the class token, above all). Keys need no constant: softmax ignores what all keys of an image share, so k is
fitted on deviations from the image's mean.

GPT-2: `c_attn` and `c_fc` likewise. The output layer is the token embedding, which is not fitted.

PVTv2: also the spatial reduction, to the original's reduced map; the convolution that opens a later stage, to the
original's output (its kept channels, before the norm); and fc1 to the pre-activations before the depthwise convolution,
which stays as it was cut. The first stage's convolution reads the image, of which nothing was cut, so it stays.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upvit_core.models.gpt2 import GPT2Adapter
from upvit_core.models.pvt import PVTAdapter
from upvit_core.models.transformer import AttentionTrace, FeedForwardTrace
from upvit_core.models.vit import ViTAdapter, layer_scale
from upvit_core.pruning.basis.fold import output_heads
from upvit_core.pruning.basis.slice import channel_basis
from upvit_core.pruning.basis.statistics import ProxyStatistics
from upvit_core.pruning.repair.layer_fit import LinearFit
from upvit_core.pruning.repair.layerwise import LayerwiseRepair, Readers, Rows
from upvit_core.records.plan import BlockPlan

MAX_PATCH_INPUTS = 6000
"""Inputs of one output of a convolution that is still fitted; with more, solving takes minutes."""


class ViTRepair(LayerwiseRepair[ViTAdapter]):
    """Repair of a ViT in the basis that the student was cut in (None: that of channels); `stats` weigh the tokens."""

    held_remainder = -1

    def prepare(self) -> None:
        self.kept_basis = (self.basis or channel_basis(self.plan)).to(self.like)
        weights = {} if self.stats is None else token_weights(self.stats)
        self.token_weights = {name: weight.to(self.like) for name, weight in weights.items()}
        _absorb_layer_scale(self.student)

    def extra_passes(self) -> int:
        return len(output_heads(self.plan.shape_after)) + bool(self.plan.shape_after.structure.pool)

    def enter_block(self, number: int) -> None:
        if number == 0:
            self.ours = [self.student.before_block(0, x) for x in self.ours]
            self.theirs = [self.original.before_block(0, y) for y in self.theirs]

    def in_student_channels(self, number: int, stream: Tensor) -> Tensor:
        return stream @ self.kept_basis.embedding

    def fit_of(self, number: int, layer: str, source: int) -> LinearFit:
        weights = self.token_weights.get(f"{layer.split('.')[1]}.{source}")
        return LinearFit.of(self.student.blocks[number].get_submodule(layer), weights=weights)

    def attention_readers(self, number: int, block: BlockPlan) -> list[Readers[AttentionTrace]]:
        module, maps = self.student.blocks[number], self.kept_basis.heads[number]
        whole, theirs = self.student.shape.structure.head_dim, self.original.blocks[block.source].attn
        width = module.attn.qkv.out_features // 3
        fits = {
            f"blocks.{number}.attn.{part}": LinearFit.of(
                module.attn.qkv,
                rows=slice(i * width, (i + 1) * width),
                bias=bool(whole) or part != "k",
                weights=self.token_weights.get(f"{part}.{block.source}"),
            )
            for i, part in enumerate("qkv")
        }

        def rows(x: Tensor, original: AttentionTrace) -> Rows:
            normed, q, k, v = module.norm1(x), original.q, original.k, original.v
            if whole:  # the layer's own outputs, before norms and rotary positions
                q, k, v = theirs.qkv(original.normed).chunk(3, -1)
            q, k = self.student.kept_tokens(number, q) @ maps.query.T, k @ maps.key.T
            keys = (normed, k) if whole else (_centred(normed), _centred(k))
            return [(self.student.kept_tokens(number, normed), q), keys, (normed, v @ maps.value.T)]

        return [Readers(fits, rows)]

    def ffn_readers(self, number: int, block: BlockPlan) -> Readers[FeedForwardTrace]:
        module, kept = self.student.blocks[number], self.kept(f"ffn.{block.ffn_block}")
        own = self.student.shape.structure
        layers = ("mlp.fc1_g", "mlp.fc1_x") if own.gate == "split" else ("mlp.fc1",)

        def rows(x: Tensor, original: FeedForwardTrace) -> Rows:
            before = self.student.kept_tokens(number, original.before).unflatten(-1, (own.first_layers, -1))[..., kept]
            normed = module.norm2(x)
            return [(normed, part.flatten(-2)) for part in before.chunk(len(layers), -2)]

        return Readers(
            {f"blocks.{number}.{layer}": self.fit_of(number, layer, block.ffn_block) for layer in layers}, rows
        )

    def read_by_projection(self, number: int, mixed: Tensor) -> Tensor:
        inner = self.student.shape.structure.attention_norm
        return self.student.blocks[number].attn.norm(mixed) if inner else mixed

    def fit_heads(self) -> None:
        self.skip_to(2 * self.original.shape.depth)
        if self.student.shape.structure.pool:
            ours, theirs = self.student.vit.attn_pool.kv, self.original.vit.attn_pool.kv
            read, target = self.student.read_by_pool, self.original.read_by_pool
            self.fit({"attn_pool.kv": LinearFit.of(ours)}, lambda x, y: [(read(x), theirs(target(y)))])
        for token, name in enumerate(output_heads(self.plan.shape_after)):
            self.fit_head(name, partial(_feature, token))


class GPT2Repair(LayerwiseRepair[GPT2Adapter]):
    """Repair of a GPT-2."""

    batch_size = 32
    stem = ""
    attention_writer, ffn_writer = "attn.c_proj", "mlp.c_proj"

    def attention_readers(self, number: int, block: BlockPlan) -> list[Readers[AttentionTrace]]:
        norm, kept = self.student.blocks[number].ln_1, self.kept(f"attention.{block.source}")
        scale = self.query_scale(number, block)

        def rows(x: Tensor, original: AttentionTrace) -> Rows:
            queries = original.q[..., kept] * scale
            return [(norm(x), torch.cat([queries, original.k[..., kept], original.v[..., kept]], -1))]

        return [Readers({f"{number}.attn.c_attn": self.fit_of(number, "attn.c_attn", block.source)}, rows)]

    def ffn_readers(self, number: int, block: BlockPlan) -> Readers[FeedForwardTrace]:
        norm, kept = self.student.blocks[number].ln_2, self.kept(f"ffn.{block.ffn_block}")
        fits = {f"{number}.mlp.c_fc": self.fit_of(number, "mlp.c_fc", block.ffn_block)}
        return Readers(fits, lambda x, original: [(norm(x), original.before[..., kept])])


class PVTRepair(LayerwiseRepair[PVTAdapter]):
    """Repair of a PVTv2. Streams are maps (B, D, H, W) between stages and (B, N, D) inside them."""

    def extra_passes(self) -> int:
        openings = [self.student.opening(stage).proj for stage in range(1, len(self.plan.shape_after.stages))]
        reductions = [block.attn.sr for block in self.student.blocks if block.attn.sr is not None]
        return bool(self.plan.shape_after.num_classes) + sum(map(_is_small, openings + reductions))

    def in_student_channels(self, number: int, stream: Tensor) -> Tensor:
        return stream[..., self.kept(f"residual.{self.plan.shape_after.stage_of(number)}")]

    def enter_block(self, number: int) -> None:
        """The convolution that opens a stage, fitted where another stage is before it."""
        stage = self.plan.shape_after.stage_of(number)
        if number != self.plan.shape_after.first_block(stage):
            return
        if stage:
            self.skip_to(2 * self.plan.shape_before.first_block(stage))
            self.ours = [self.student.leave(stage - 1, x) for x in self.ours]
            self.theirs = [self.original.leave(stage - 1, y) for y in self.theirs]
            ours, theirs = self.student.opening(stage).proj, self.original.opening(stage).proj
            name, kept = f"stages.{stage}.downsample.proj", self.kept(f"residual.{stage}")
            if _is_small(ours):
                fits = {name: LinearFit.of(ours)}
                self.fit(fits, lambda x, y: [(_patches(x, ours), theirs(y).flatten(2).mT[..., kept])])
        self.ours = [self.student.enter(stage, x) for x in self.ours]
        self.theirs = [self.original.enter(stage, y) for y in self.theirs]

    def attention_readers(self, number: int, block: BlockPlan) -> list[Readers[AttentionTrace]]:
        module, kept = self.student.blocks[number], self.kept(f"attention.{block.source}")
        attn, name, scale = module.attn, f"blocks.{number}.attn", self.query_scale(number, block)

        def reduction(x: Tensor, original: AttentionTrace) -> Rows:
            assert original.reduced is not None
            patches = _patches(self.student.reduced_map(number, module.norm1(x)), attn.sr)
            return [(patches, original.reduced[..., self.kept(f"reduction.{block.source}")])]

        def queries_keys_values(x: Tensor, original: AttentionTrace) -> Rows:
            normed = module.norm1(x)
            reduced = self.student.reduce(number, normed)
            keys_values = torch.cat([original.k[..., kept], original.v[..., kept]], -1)
            return [
                (normed, original.q[..., kept] * scale),
                (normed if reduced is None else self.student.read_by_keys(number, attn.norm(reduced)), keys_values),
            ]

        passes = []
        if attn.sr is not None and _is_small(attn.sr):
            passes.append(Readers({f"{name}.sr": LinearFit.of(attn.sr)}, reduction))
        fits = {f"{name}.{part}": LinearFit.of(layer) for part, layer in (("q", attn.q), ("kv", attn.kv))}
        return [*passes, Readers(fits, queries_keys_values)]

    def ffn_readers(self, number: int, block: BlockPlan) -> Readers[FeedForwardTrace]:
        module, kept = self.student.blocks[number], self.kept(f"ffn.{block.ffn_block}")
        fits = {f"blocks.{number}.mlp.fc1": LinearFit.of(module.mlp.fc1)}
        return Readers(fits, lambda x, original: [(module.norm2(x), original.before[..., kept])])

    def fit_heads(self) -> None:
        self.skip_to(2 * self.original.shape.depth)
        last = len(self.plan.shape_after.stages) - 1
        self.fit_head("head", lambda adapter, x: adapter.leave(last, x).mean((-1, -2)))


def token_weights(stats: ProxyStatistics) -> dict[str, Tensor]:
    """By layer the weight of each token (T,), with mean 1: the root of its mean squared gradient, and never 0."""
    weights = {}
    for name, squares in stats.token_gradients.items():
        weight = (squares / squares.mean().clamp_min(1e-300)).clamp_min(0.01).sqrt()
        weights[name] = weight / weight.mean()
    return weights


def _feature(token: int, vit: ViTAdapter, x: Tensor) -> Tensor:
    return vit.features(x)[:, token]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def _absorb_layer_scale(student: ViTAdapter) -> None:
    """Move layer scale into proj and fc2, whose outputs are fitted; timm's module stays, at 1."""
    for block in student.blocks if student.shape.layer_scale else ():
        for half, linear in ((1, block.attn.proj), (2, block.mlp.fc2)):
            gamma = layer_scale(block, half)
            assert gamma is not None
            for parameter in linear.parameters():
                parameter.transpose(0, -1).mul_(gamma)
            gamma.fill_(1)


def _is_small(convolution: nn.Conv2d) -> bool:
    return convolution.weight[0].numel() <= MAX_PATCH_INPUTS


def _patches(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The input of a convolution at each place, (B, N, C · k · k), in the order of its flattened weight."""
    padding, stride = convolution.padding, convolution.stride
    patches = F.unfold(maps, convolution.kernel_size, padding=padding, stride=stride)  # type: ignore[arg-type]
    return patches.transpose(1, 2)
