"""A small language model: a GPT-2 of 4 blocks, 96 wide, trained from scratch on the King James Bible in minutes.

The text is what Debian's package `bible-kjv` prints (`bible -f Gen1:1-Rev22:21`), without the verses' numbers, or any
UTF-8 file. The tokenizer is byte-level BPE (Sennrich et al. 2016) of 512 tokens, learnt from the training part.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from upvit_core.atomic import replaced
from upvit_core.data.text import open_text
from upvit_core.errors import DataError
from upvit_core.evaluation import evaluate
from upvit_core.models.build import build_model
from upvit_core.models.checkpoint import save_model
from upvit_core.models.gpt2 import language_shape, require_transformers
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.shape import BlockShape
from upvit_core.training.distillation import Distillation, Row, distill, make_accelerator
from upvit_core.training.settings import PRESETS

VOCABULARY, CONTEXT, WIDTH, DEPTH, HEADS = 512, 64, 96, 4, 4
VERSE = re.compile(r"^\S+ ", re.MULTILINE)
TEXT = "text.txt"


def king_james() -> str:
    """The whole text, a verse a line. Raises DataError where the program that prints it is not installed."""
    program = shutil.which("bible")
    if program is None:
        raise DataError("There is no text to learn from: apt-get install bible-kjv, or give --text FILE.")
    done = subprocess.run([program, "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        raise DataError(f"{program} printed no text ({done.stderr.strip()[:100]}); install bible-kjv-text too.")
    return VERSE.sub("", done.stdout)


def learn_tokenizer(text: str, vocabulary: int = VOCABULARY) -> str:
    """Byte-level BPE of that many tokens, as the JSON of Hugging Face's `tokenizers`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer.to_str()


def train_language(
    out: Path,
    text: Path | None = None,
    *,
    epochs: int = 2,
    width: int = WIDTH,
    depth: int = DEPTH,
    seed: int = 0,
    report: Callable[[Row], None] = lambda row: None,
) -> dict[str, object]:
    """Train and write the folder: config, weights, tokenizer, and the text itself; what is reached is returned.

    `report` receives the rows of training. perplexity is that of the evaluation part, the last twentieth, per token.
    Raises UnsupportedModelError where `transformers` is not installed.
    """
    require_transformers()
    whole = king_james() if text is None else text.read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    with replaced(out / TEXT) as temporary:
        temporary.write_text(whole, encoding="utf-8")
    cfg = {"tokenizer": learn_tokenizer(whole[: int(0.95 * len(whole))]), "context": CONTEXT}
    train, test = (open_text(str(out / TEXT), split, cfg) for split in ("train", "val"))
    blocks = (BlockShape(HEADS, width, 4 * width),) * depth
    shape = language_shape(
        "language", vocabulary=len(train.class_names), context=CONTEXT, embed_dim=width, blocks=blocks
    )
    settings = PRESETS["language"].model_copy(update={"seed": seed})
    student, accelerator = build_model(shape, seed=seed), make_accelerator("cpu", "no")
    run = Distillation.on_images(
        student, None, train, {}, settings, epochs=epochs, num_classes=shape.num_classes, accelerator=accelerator
    )
    model = distill(run, report=report, after_step=lambda run: None)
    save_model(model, out, shape=shape, pretrained_cfg=cfg, name=out.name)
    result = evaluate(model, test.batches(shape.batch_size(100)))
    measured = {"perplexity": result.perplexity, "top1": result.top1, "tokens": result.images}
    cost = {"params": count_parameters(shape), "steps": run.step, "seconds": round(run.seconds, 1)}
    return {"out": str(out), "text": str(out / TEXT), **measured, **cost}
