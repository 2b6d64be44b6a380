"""A tiny GPT-2 with generic weights, token blocks for it, and a text with habits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.tiny import TensorProxy
from upvit_core.models.build import build_model, expected_tensors
from upvit_core.models.checkpoint import save_model
from upvit_core.models.gpt2 import gpt2_config, language_shape
from upvit_core.records.shape import BlockShape, ModelShape

VOCABULARY, CONTEXT = 23, 7
LETTERS = "abcdefghijklmnopqrstuv "


@cache
def tiny_gpt2(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, ModelShape]:
    """Perturbed weights, norms and biases too, in eval mode. Treat as read-only."""
    shape = language_shape(
        "tiny", vocabulary=VOCABULARY, context=CONTEXT, embed_dim=12, blocks=(BlockShape(4, 12, 20),) * 3
    )
    return _perturbed(build_model(shape, seed=3)).to(dtype), shape


def _perturbed(model: nn.Module) -> nn.Module:
    """In float64, with weights that make no two tokens equally likely."""
    model, generator = model.double().eval(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def folder_of_weights(folder: Path, *, ours: bool) -> Path:
    """A GPT-2 folder of random weights, written without `transformers`: as this project does, or as that library."""
    shape = language_shape("folder", vocabulary=9, context=7, embed_dim=8, blocks=(BlockShape(2, 8, 16),) * 2)
    folder.mkdir()
    save_file({name: torch.randn(size) for name, size in expected_tensors(shape).items()}, folder / "model.safetensors")
    config = gpt2_config(shape) | ({"upvit_shape": shape.to_dict()} if ours else {})
    (folder / "config.json").write_text(json.dumps(config))
    return write_text(folder / "text.txt").parent


def tokens(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, CONTEXT), generator=torch.Generator().manual_seed(seed))


class Blocks(TensorProxy):
    """A proxy set of token blocks (N, T), each with its own tokens as labels."""

    def batches(self, batch_size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.tensor.split(batch_size):
            yield part.to(device), part.to(device)


def letters_tokenizer() -> str:
    """A tokenizer of single letters, as its JSON."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokenizer = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token=" "))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    return tokenizer.to_str()


def write_letters_model(folder: Path) -> Path:
    """A folder of a GPT-2 that reads single letters, its weights drawn at random, beside a text."""
    blocks = (BlockShape(4, 16, 32),) * 2
    shape = language_shape("letters", vocabulary=VOCABULARY, context=CONTEXT, embed_dim=16, blocks=blocks)
    cfg = {"tokenizer": letters_tokenizer(), "context": CONTEXT}
    model = _perturbed(build_model(shape, seed=0)).float()
    save_model(model, folder, shape=shape, pretrained_cfg=cfg, name="letters")
    return write_text(folder / "text.txt").parent


def write_text(path: Path, length: int = 3000) -> Path:
    """A text with habits: each letter is mostly followed by one that depends on it."""
    rng = np.random.default_rng(0)
    letter, text = 0, []
    for _ in range(length):
        letter = (3 * letter + 1) % len(LETTERS) if rng.random() < 0.8 else int(rng.integers(len(LETTERS)))
        text.append(LETTERS[letter])
    path.write_text("".join(text))
    return path
