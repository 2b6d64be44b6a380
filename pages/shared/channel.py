"""One channel under the glass: score, place and error; and, with weights, what its removal does to real images."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from pages.shared import channel_more, charts, jobs, measured, opened, plans, terms, words
from pages.shared.cards import Card, cards
from pages.shared.gallery import Tile, gallery
from pages.shared.opened import Opened
from upvit_core.figures.channel import kl_by_image, place
from upvit_core.figures.heatmaps import heads_after, kept_mask, member_word
from upvit_core.figures.theme import TITLES
from upvit_core.importance.scores import ImportanceScores
from upvit_core.models.judge import judge_of
from upvit_core.models.shape import Component
from upvit_core.planning.plan import PruningPlan
from upvit_core.profiling.macs import count_macs

if TYPE_CHECKING:
    from upvit_core.models.checkpoint import LoadedModel

KEY = "channel"
WANTED = "channel-wanted"
IMAGES = 500
TOKENS = 4000
SHOWN = 8
MAPS = 4
PATIENCE_SECONDS = 0.7


@dataclass(frozen=True)
class Effect:
    """What removing one channel does: KL (N,) and probabilities (N, classes) before and after, and some images.

    Of a text, N counts tokens, and `indices` their places.

    maps: of an attention channel, its head's attention to the patches with and without it, on the most affected images,
    (images, 2, rows, columns).
    """

    kl: np.ndarray
    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    indices: np.ndarray
    data: str
    norms: dict[str, float]
    maps: np.ndarray | None = None

    @property
    def changed(self) -> np.ndarray:
        return self.before.argmax(1) != self.after.argmax(1)


def choose(component: Component, block: int, number: int) -> None:
    """Put a channel under the glass; to be called before the inspector is drawn."""
    st.session_state[KEY] = st.session_state[WANTED] = (component, block, number)
    st.session_state["glass-component"], st.session_state["glass-block"] = component, block
    st.session_state["glass-channel"] = number


def picker(scores: ImportanceScores) -> tuple[Component, int, int]:
    """Three fields that name a channel."""
    shape = scores.shape
    a, b, c = st.columns(3)
    if "glass-component" not in st.session_state:
        st.session_state["glass-component"] = "residual"
    if st.session_state["glass-component"] not in shape.components:
        st.session_state["glass-component"] = "residual"
    component: Component = a.selectbox(
        "Component", shape.components, format_func=TITLES.__getitem__, key="glass-component"
    )
    most = max(group.place for group in shape.groups_of(component))
    if component == "residual" and most == 0:
        most = shape.depth - 1  # the field keeps its block while it is off
    if st.session_state.get("glass-block", 0) > most:
        st.session_state["glass-block"] = 0
    alone = component == "residual" and not shape.stages
    block = b.number_input(
        "Stage" if component == "residual" and shape.stages else "Block", 0, max(most, 1), step=1, key="glass-block",
        disabled=alone or most == 0, help="The residual is one for all blocks." if alone else None,
    )  # fmt: skip
    width = len(scores.values[shape.key_of(component, int(block))])
    if st.session_state.get("glass-channel", 0) >= width:
        st.session_state["glass-channel"] = 0
    number = c.number_input(
        f"{member_word(scores, component).capitalize()} (0 to {width - 1})", 0, width - 1, step=1, key="glass-channel"
    )
    st.session_state[KEY] = (component, int(block), int(number))
    return component, int(block), int(number)


def rivals(scores: ImportanceScores, plan: PruningPlan, component: Component, block: int, number: int) -> np.ndarray:
    """Channels that compete for the same places: all of the component, or those of the same merged head."""
    width = len(scores.values[scores.shape.key_of(component, block)])
    if component != "attention":
        return np.arange(width)
    size = width // heads_after(plan, scores, block)
    return np.arange(number // size * size, (number // size + 1) * size)


def inspector(model: Opened, scores: ImportanceScores, plan: PruningPlan) -> None:
    what = "direction" if scores.basis == "directions" else "channel"
    st.subheader(
        f"One {what} under the glass", anchor=False, divider="gray",
        help=terms.tip(
            "Its score, its place against the cut, and what its removal does.", what, "score", "stderr", "cut"
        ),
    )  # fmt: skip
    st.html(f'<p class="quiet">Click a cell of a picture above, or name a {what} here.</p>')
    left, right = st.columns([0.5, 0.5], gap="medium")
    with left:
        component, block, number = picker(scores)
        key = scores.shape.key_of(component, block)
        group = rivals(scores, plan, component, block, number)
        kept = kept_mask(plan, scores, component, block)
        value = float(scores.values[key][number])
        error = scores.stderr.get(key)
        rank = int((scores.values[key][group] > value).sum()) + 1
        where = (
            "of its merged head"
            if component == "attention"
            else "of all"
            if component == "residual"
            else "in its block"
        )
        cards(
            [
                Card(
                    "Score",
                    f"{words.figure(value)} nats",
                    f"± {words.figure(error[number], 2)} standard error" if error is not None else "no error given",
                ),
                Card("Place", f"{rank} of {len(group)}", where),
                Card("In this plan", "kept" if kept[number] else "removed", _margin(scores, key, group, kept, number)),
            ]
        )
        charts.show(place(scores, component, block, number, group, kept[group], charts.theme()), "place")
        if scores.basis == "channels":
            channel_more.by_criterion(model, component, block, number, group)
        channel_more.neighbours(scores, key, group, kept, number)
    with right:
        _removal(model, component, block, number, scores.basis)


def _margin(scores: ImportanceScores, key: str, group: np.ndarray, kept: np.ndarray, number: int) -> str:
    """How far the channel's score is from the cut."""
    inside = group[kept[group]]
    outside = group[~kept[group]]
    if not len(inside) or not len(outside):
        return "nothing is cut here"
    values = scores.values[key]
    edge = (values[inside].min() + values[outside].max()) / 2
    distance = abs(values[number] - edge)
    if key in scores.stderr and scores.stderr[key][number] > 0:
        count = distance / scores.stderr[key][number]
        return f"{count:.1f} standard errors from the cut" + (": not certain" if count < 2 else "")
    return f"{distance:.2g} nats from the cut"


def removal_job(
    model: Opened, component: Component, block: int, number: int, spec: str, count: int = IMAGES
) -> jobs.Job:
    """The job that removes one channel and looks at every image."""
    key = model.shape.key_of(component, block)

    def work(report: jobs.Report) -> Effect:
        report.say("reading the weights")
        from upvit_core.evaluation import kl_by_image as kl_by_sample
        from upvit_core.importance.attention_maps import attention_maps
        from upvit_core.importance.removal import remove_one
        from upvit_core.models.adapt import adapt

        live, data = opened.live(model), measured.images(model, spec, "val")
        indices = measured.evaluation_indices(data, min(count, TOKENS // model.shape.answers))
        report.say(f"{len(indices):,} {judge_of(model.shape).items} with and without it")
        batches = data.batches(100 if model.shape.img_size[0] < 100 else 8, indices=indices)
        adapter = adapt(live.model, live.shape)
        result = remove_one(adapter, batches, key, number, lambda done: report(done / len(indices)))
        labels, names = data.labels()[indices], tuple(live.class_names or data.class_names)
        before, after, kl, where = result.before, result.after, result.kl, np.asarray(indices)
        if model.shape.is_language:  # every token of a block is an answer of its own
            labels = np.concatenate([data.block(int(index))[1:] for index in indices])  # type: ignore[attr-defined]
            before, after = (logits.flatten(0, 1) for logits in (before, after))
            kl = kl_by_sample(before, after)
            names = tuple(data.token(number) for number in range(len(names)))  # type: ignore[attr-defined]
            where = (where[:, None] * model.shape.answers + np.arange(model.shape.answers)).ravel()
        maps = None
        if component == "attention" and not model.shape.is_language:
            top = np.asarray(indices)[np.argsort(-result.kl.numpy(), kind="stable")[:MAPS]]
            pixels = next(iter(data.batches(len(top), indices=top)))[0]
            found = attention_maps(adapter, pixels, block, number)
            maps = None if found is None else np.stack([found[0].numpy(), found[1].numpy()], axis=1)
        return Effect(
            kl=kl.numpy(),
            before=before.float().softmax(-1).numpy(),
            after=after.float().softmax(-1).numpy(),
            labels=labels,
            names=names,
            indices=where,
            data=data.name,
            norms=weight_norms(live, key, number),
            maps=maps,
        )

    return jobs.start(
        f"remove {opened.identity(model)} {spec} {key} {number} {count}", work, f"Removing channel {number}"
    )


def weight_norms(live: LoadedModel, key: str, number: int) -> dict[str, float]:
    """L2 norms of the weights that carry the channel, by layer; of a residual, only where it comes in and goes out."""
    from upvit_core.models.adapter import carriers

    found = {name: tensor for name, tensor in carriers(live.model, live.shape, key).items() if "bias" not in name}
    if key.startswith("residual"):
        names = list(found)
        found = {name: found[name] for name in (names[0], names[-1])}
    return {name.replace(".weight", ""): float(t[number].detach().norm()) for name, t in found.items()}


def _removal(model: Opened, component: Component, block: int, number: int, basis: str) -> None:
    spec, judge = measured.image_spec(model), judge_of(model.shape)
    if not model.has_weights or not spec:
        give = f"{words.inputs(model.shape)}; give {words.them(model.shape)} on the Model page"
        needs = give if model.has_weights else "a model with weights"
        st.info(
            f"Here you will see which {judge.samples} change when only this channel is removed. That needs {needs}.",
            icon=":material/visibility:",
        )
        return
    name = (component, block, number, basis)
    what = "channel" if basis == "channels" or component == "ffn" else "direction"
    if basis == "directions" and component == "residual" and number == 0:
        st.info("This is the constant: LayerNorm takes it away, and every plan keeps it.")
        return
    if st.session_state.pop(WANTED, None) == name[:3] and count_macs(model.shape) <= plans.AUTOMATIC_MACS:
        st.session_state["removed"] = name
    if st.session_state.get("removed") != name and not st.button(
        f"Remove only this {what}", icon=":material/content_cut:"
    ):
        st.html(f'<p class="quiet">Shows which test {judge.samples} change, and how: before → after.</p>')
        return
    st.session_state["removed"] = name
    if basis == "directions":
        from pages.shared import direction

        job = direction.removal_job(model, component, block, number, spec)
    else:
        job = removal_job(model, component, block, number, spec)
    jobs.linger(job, PATIENCE_SECONDS)
    if job.active:
        jobs.progress(job)
        return
    if job.state != "done":
        st.error(job.error or "Cancelled.")
        jobs.forget(job.key)
        st.session_state.pop("removed", None)
        return
    show_effect(model, job.result, component, spec)


def show_effect(model: Opened, effect: Effect, component: Component, spec: str) -> None:
    judge = judge_of(model.shape)
    chart = kl_by_image(effect.kl, effect.changed, component, charts.theme(), sample=judge.sample)
    charts.show(chart, "kl-by-image")
    norms = " · ".join(f"{where} {norm:.3g}" for where, norm in effect.norms.items())
    images = f"{len(effect.kl):,} of {words.data_name(effect.data)}"
    weights = f"Norm of its weights: {norms}. " if norms else ""
    st.html(f'<p class="quiet">{weights}{judge.samples.capitalize()}: {images}.</p>')
    examples(model, effect, spec, columns=4)
    channel_more.show(effect, component, judge)


def examples(model: Opened, effect: Effect, spec: str, *, columns: int, only: list[int] | None = None) -> None:
    """The most affected images or tokens, or those in `only`, before → after."""
    if model.shape.is_language:
        passages(model, effect, spec, only=only)
    else:
        gallery(tiles(model, effect, spec, only=only), columns=columns)


def passages(
    model: Opened, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None
) -> None:  # fmt: skip
    """Where in the text: what went before, the token that follows, and the likeliest one before → after."""
    data: Any = measured.images(model, spec, "val")
    rows = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        block, place = divmod(int(effect.indices[i]), model.shape.answers)
        told = data.passage(block, place)
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        rows.append(
            "<tr>"
            + "".join(
                f"<td>{escape(cell)}</td>"
                for cell in (
                    f"… {told}", effect.names[effect.labels[i]], f"{effect.names[was]} {effect.before[i, was]:.0%}",
                    f"{effect.names[now]} {effect.after[i, now]:.0%}", f"{effect.kl[i]:.2g}",
                )
            )
            + "</tr>"
        )  # fmt: skip
    heads = ("after", "comes", "it said", "now it says", "KL, nats")
    top = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    st.html(f'<div class="scrolls"><table class="plain"><tr>{top}</tr>{"".join(rows)}</table></div>')


def tiles(model: Opened, effect: Effect, spec: str, count: int = SHOWN, only: list[int] | None = None) -> list[Tile]:
    """The most affected images, or those in `only`, before → after."""
    data = measured.images(model, spec, "val")
    found = []
    for i in only or np.argsort(-effect.kl, kind="stable")[:count]:
        was, now = int(effect.before[i].argmax()), int(effect.after[i].argmax())
        first = f"{effect.names[was]} {effect.before[i, was]:.0%}"
        then = f"→ {effect.names[now]} {effect.after[i, now]:.0%}"
        picture = measured.data_uri(data.image(int(effect.indices[i])))
        found.append(
            Tile(picture, f"{effect.names[effect.labels[i]]}: {first} {then}", (first, then, f"KL {effect.kl[i]:.2g}"))
        )
    return found
