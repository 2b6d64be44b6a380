"""The lesson "The right basis": why removing channels hurts, what rotating changes and what not, what each cut keeps.

Everything is measured on the open model: its spectrum, its answers before and after the rotation, and three cuts of the
residual alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import streamlit as st

from pages.services import block_removals, evaluation, jobs, open_model, removal, scoring
from pages.services.open_model import OpenModel
from pages.widgets import charts, progress, tables
from pages.widgets.cards import MEASURED, Card, cards
from pages.widgets.tables import gallery
from upvit_core.figures.channel import before_after
from upvit_core.figures.spectrum import held, spectrum_curves
from upvit_core.planning.what_if import MAX_REMOVED_PERCENT, WhatIf
from upvit_core.records.scores import ImportanceScores

MOMENTS = ("As trained", "Rotated", "Cut")
IMAGES = 200


@dataclass(frozen=True)
class Rotation:
    """Shares of energy (D,) of channels and of directions; what the model says before and after being rotated."""

    channels: np.ndarray
    directions: np.ndarray
    effect: removal.Effect
    largest: float  # difference of any logit on any image
    spread: float  # standard deviation of the logits


def rotation_job(model: OpenModel) -> jobs.Job[Rotation]:
    """The job that computes the spectrum, rotates the model at full width and evaluates both on the same images."""

    def work(report: jobs.Report) -> Rotation:
        from upvit_core.evaluation import predict
        from upvit_core.pruning.basis import prune_directions
        from upvit_core.pruning.basis.scores import whole_plan
        from upvit_core.pruning.basis.spectrum import spectrum

        report.step("gathering second moments")
        stats = evaluation.statistics(model, report)
        live, data = model.weights(), model.images("val")
        report.step("rotating")
        rotated = prune_directions(live.model, live.shape, whole_plan(live.shape), stats)
        indices = evaluation.evaluation_indices(data, IMAGES)
        batches = list(data.batches(model.shape.batch_size(50), indices=indices))
        before, after = predict(live.model, batches)[0], predict(rotated, batches)[0]
        channels, directions = (share.numpy() for share in spectrum(stats))
        effect = removal.effect_of(model, before, after, indices)
        return Rotation(channels, directions, effect, float((before - after).abs().max()), float(before.std()))

    return jobs.ensure(f"rotation {model.data_key}", work, "Rotating the model")


def lesson(model: OpenModel, scores: ImportanceScores | None, *, height: int) -> None:
    """Words on the left, the picture on the right; three moments."""
    text, picture = st.columns([0.36, 0.64], gap="large")
    if not scoring.can_find_directions(model):
        with text:
            _say(WHY)
        picture.info(
            "This step turns the model's own stream: it needs a plain ViT with weights, and images. The demo has both."
        )
        return
    with text:
        moment = st.segmented_control(
            "Step", MOMENTS, default=MOMENTS[0], required=True, wrap=True, key="lesson-rotation"
        )
        words = st.container()
        ratio = 50
        if moment != MOMENTS[1]:
            ratio = st.slider("Residual removed", 5, MAX_REMOVED_PERCENT, 50, step=5, key="lesson-basis", format="%d%%")
    with picture:
        found = progress.show(rotation_job(model), height=height)
        if found is None:
            return
        D = model.shape.embed_dim
        kept = len(WhatIf(ratio, 0, None, 0).plan(open_model.no_scores(model.shape)).residual.keep)
        if moment == MOMENTS[1]:
            _identical(model, found, height)
        else:
            directions = found.directions if moment == MOMENTS[2] else None
            tall = height if directions is None else height - 110
            chart = spectrum_curves(found.channels, directions, kept, charts.theme(), height=tall)
            charts.show(charts.enlarged(chart), f"lesson-spectrum-{moment}")
            if directions is not None and scores is not None:
                _cuts(model, scores, ratio)
    with words:
        if moment == MOMENTS[0]:
            _say(
                WHY + f"<p>Here the best <b>{kept} of {D} channels</b> carry {held(found.channels, kept):.0f} % of the "
                "stream. The rest is not noise: it is torn out of every block at once.</p>"
            )
        elif moment == MOMENTS[1]:
            _say(
                "<p>Turn the stream, so that its first axis is the <b class='residual'>direction</b> in which images "
                "differ most, and so on. Whatever writes to the stream is turned along, whatever reads it is turned "
                f"back.</p><p>So nothing changes: over {len(found.effect.kl)} images no logit moved by more than "
                f"<b>{found.largest:.1g}</b> (their spread is {found.spread:.2g}; what is left is rounding).</p>"
                "<p>LayerNorm does not mind, once its own weights are folded into the layers that read it.</p>"
            )
        else:
            _say(
                f"<p>Now cut. The best <b>{kept} directions</b> carry {held(found.directions, kept):.1f} %, the best "
                f"{kept} channels {held(found.channels, kept):.1f} %: as wide, the same structure, the same speed.</p>"
                "<p><b>Repair</b> then fits each layer to what the original's did, by least squares. No training.</p>"
            )


WHY = (
    "<p>A <b class='residual'>channel</b> is one number of the stream. Training never asked that a channel mean "
    "anything by itself: what the model knows lies in <i>mixtures</i> of them, spread over all.</p>"
)


def _say(text: str) -> None:
    st.html(f'<div class="lesson">{text}</div>')


def _identical(model: OpenModel, found: Rotation, height: int) -> None:
    """One image with both models' answers."""
    effect = found.effect
    unsure = np.argsort(effect.before.max(1), kind="stable")  # the least certain first: those would move most
    place = st.slider("Image, the least certain first", 1, len(unsure), 1, key="lesson-rotated-image")
    chosen = int(unsure[place - 1])
    one, two = st.columns([0.2, 0.8])
    with one:
        gallery(tables.tiles(model, effect, only=[chosen]), columns=1)
    with two:
        chart = before_after(
            effect.names, effect.before[chosen], effect.after[chosen], "residual", charts.theme(), height=height - 120,
            called=("original", "rotated"),
        )  # fmt: skip
        charts.show(charts.enlarged(chart), "lesson-rotated")


def _cuts(model: OpenModel, scores: ImportanceScores, ratio: int) -> None:
    """Top-1 and KL of three cuts of the residual alone, measured one after another."""
    ways = {
        "Channels": WhatIf(ratio, 0, None, 0),
        "Directions": WhatIf(ratio, 0, None, 0, "directions"),
        "Repaired": WhatIf(ratio, 0, None, 0, "directions", True),
    }
    found = {}
    for name, way in ways.items():
        if scores.basis == "directions" and way.basis == "channels":
            continue  # the scores in use cannot rank channels
        found[name] = evaluation.preview(model, way.plan(scores, block_removals.records()), repair=way.repair)

    def draw() -> None:
        row = []
        for name, job in found.items():
            if (result := jobs.result_of(job)) is not None:
                note = f"top-1, {result.images:,} images; KL {result.kl:.2g} nats"
                row.append(Card(name, f"{result.top1:.1f} %", note, MEASURED))
            else:
                row.append(Card(name, "—", escape(job.error) or job.detail or "waiting for its turn", stale=True))
        cards(row)

    progress.redraw_when_done(tuple(found.values()), draw)
