"""The exact terms that the pages use, each with a plain line, its definition, and where it is seen; shown in place."""

import re
from dataclasses import dataclass
from html import escape

from upvit_core.files import digest


@dataclass(frozen=True)
class Term:
    """`plain` is for everyone, `exact` for those who compute; `also` are other words for it; `page` shows it."""

    key: str
    name: str
    plain: str
    exact: str
    page: str
    also: tuple[str, ...] = ()


MODEL, IMPORTANCE, TRADEOFF, RUNS, METHOD = (
    f"pages/{name}/page.py" for name in ("start", "importance", "tradeoff", "runs", "method")
)
PAGES = {MODEL: "Start", IMPORTANCE: "Importance", TRADEOFF: "Trade-off", METHOD: "Method", RUNS: "Runs"}
TERMS = (
    Term("patch", "Patch", "A small square of the image; the model reads the image as a row of patches.",
         "P × P pixels, mapped linearly to one token of D channels.", MODEL),
    Term("token", "Token", "A piece of a text, often a part of a word; the model reads the text as a row of tokens.",
         "An entry of the tokenizer's vocabulary, mapped to D channels.", MODEL),
    Term("block", "Block", "One of the equal steps that an image or text goes through: attention, then FFN.",
         "x ← x + Attention(LN(x)); x ← x + FFN(LN(x)).", MODEL),
    Term("residual", "Residual", "The road through the model, which every block reads and adds to.",
         "The stream of D channels per token (component 1): one channel is an entry of every LayerNorm, a column of "
         "what reads it, a row of what writes it.", IMPORTANCE),
    Term("attention", "Attention", "Where patches, or tokens, look at one another.",
         "softmax(QKᵀ/√d) V in each head, then a projection (component 2). A channel is one row of q, k and v and one "
         "column of the projection.", IMPORTANCE),
    Term("head", "Head", "Attention done several times side by side, each time over its own channels.",
         "h heads of d channels each; one softmax a head.", METHOD),
    Term("merging", "Merging heads", "Neighbouring heads become one before the cut, so that few wide heads stay.",
         "h_b heads become h_t, h_b / h_t neighbours in each; all merged heads keep equally many channels.", METHOD),
    Term("ffn", "FFN", "The part of a block that thinks about each patch, or token, alone.",
         "W₂ GELU(W₁x + b₁) + b₂ (component 3); a channel is a hidden unit: a row of W₁, a column of W₂.", IMPORTANCE),
    Term("channel", "Channel", "One number in a row of numbers that the model passes on; the least that is cut.",
         "An index of a component, removed exactly: the model runs as if its width were one less.", IMPORTANCE),
    Term("kl", "KL divergence", "How far two answers are apart: 0 when they are equal.",
         "KL(q ‖ p) = Σ_c q_c ln(q_c / p_c), in nats; q is the original's answer, p the other's.", METHOD, ("KL",)),
    Term("nat", "Nat", "The unit of KL: like a bit, but with natural logarithms.", "1 nat = 1 / ln 2 = 1.44 bits.",
         IMPORTANCE, ("nats",)),
    Term("score", "Score", "How much the model's answers change when one channel is missing.",
         "s = Σ_i KL(q_i ‖ p_i) over the proxy images, or tokens, i (Eq. 1 of the letter).", IMPORTANCE),
    Term("stderr", "Standard error", "How much a number would wander if other images or texts had been drawn.",
         "Standard deviation over them divided by √N (of a sum: times √N).", IMPORTANCE, ("standard error",)),
    Term("interval", "95 % interval", "The range that holds the true value 19 times out of 20.",
         "Top-1: Wilson's interval. Means: ± 1.96 standard errors.", TRADEOFF, ("95 %",)),
    Term("proxy", "Proxy images", "The few images, or blocks of text, on which channels are scored.",
         "N images of the training split, drawn by a seed.", IMPORTANCE, ("proxy images",)),
    Term("criterion", "Criterion", "A way to score channels: exact (kl), fast (fisher), or by the weights (l1).",
         "A map from a model and proxy images to one number a channel.", IMPORTANCE),
    Term("ratio", "Pruning ratio", "The share that is removed.", "1 − kept / width, of each component.", TRADEOFF),
    Term("plan", "Plan", "Which channels of which block stay.", "plan.json: ascending indices by component and block.",
         TRADEOFF),
    Term("cut", "Cut", "Where the ranking is divided: what is right of it goes.",
         "The k channels of least score, in each block or merged head.", METHOD),
    Term("direction", "Direction", "A mix of channels: after a rotation, what matters lies in few of them.",
         "An eigenvector of the second moments of the residual, or of a head's factors; cut after rotating.", TRADEOFF,
         ("Directions", "directions")),
    Term("repair", "Repair", "Bending back what the cut has bent, without training.",
         "Each layer's outputs fitted to the original's by least squares on images.", TRADEOFF),
    Term("surgery", "Surgery", "The cut itself: a model with smaller matrices comes out.",
         "Rows and columns left out; same structure, no masks.", RUNS),
    Term("parameters", "Parameters", "The numbers that the model has learnt.", "Weights and biases, counted exactly.",
         MODEL),
    Term("macs", "MACs", "Multiplications with an addition, for one image or block of text.",
         "Multiply-accumulates of a forward pass, QKᵀ and AV included; FLOPs are about twice as many.", TRADEOFF),
    Term("throughput", "Images/s", "How many images, or blocks of text, go through in a second, on this device.",
         "Batch size divided by the median time of a batch, models in turns.", RUNS, ("Speed-up",)),
    Term("perplexity", "Perplexity", "Between how many tokens a language model wavers, on average, for the next one.",
         "exp of the mean cross-entropy of the next token, over the tokens of a text it was not trained on.", MODEL),
    Term("top1", "Top-1", "The share of images whose likeliest class is the right one.",
         "Percent of evaluation images with argmax p = y.", MODEL),
    Term("knn", "k-NN top-1", "Without a classifier: the share of images whose nearest neighbours vote right.",
         "Votes of the 20 training images of the highest cosine, weighed by exp(cos / 0.07).", MODEL, ("k-NN",)),
    Term("cosine", "Cosine", "How alike two features point: 1 is the same direction, 0 is none in common.",
         "Mean of f·g / (‖f‖ ‖g‖) over images, f of the original and g of the thinner model.", TRADEOFF),
    Term("front", "Front", "The plans that no other plan beats in both cost and loss.",
         "The Pareto-optimal plans of cost against loss.", TRADEOFF),
    Term("map", "Map", "What is left of the model over all sliders, estimated from cuts that were measured around it.",
         "Gaussian processes of log KL and top-1 over shares, heads and scores removed; bands of 80 %.", TRADEOFF),
    Term("teacher", "Teacher", "The original model, whose answers the thinner one learns.", "q in Eq. 2.", RUNS),
    Term("distillation", "Distillation", "Learning from the teacher's answers besides the labels.",
         "L = CE(y, p) + α · KL(q ‖ p) (Eq. 2 of the letter).", RUNS),
    Term("epoch", "Epoch", "Once through all that is trained on.", "N / batch size steps.", RUNS),
)  # fmt: skip
BY_KEY = {term.key: term for term in TERMS}
BY_NAME = {name.casefold(): term.key for term in TERMS for name in (term.name, *term.also)}
LEADING = re.compile(
    "(?:" + "|".join(sorted(map(re.escape, BY_NAME), key=len, reverse=True)) + r")(?!\w)", re.IGNORECASE
)


def defined(term: Term) -> str:
    """The exact definition as HTML, with indices below the line."""
    return re.sub(r"_(\w)", r"<sub>\1</sub>", escape(term.exact))


def link(key: str, text: str = "", name: str = "") -> str:
    """A term as an HTML button that opens its definition in place; `name` sets it apart from others on the page."""
    term, place = BY_KEY[key], f"term-{key}-{digest(name or text or key, 6)}"
    return (
        f'<button type="button" class="term" popovertarget="{place}">{escape(text or term.name)}</button>'
        f'<span popover="auto" id="{place}" class="definition"><b>{escape(term.name)}</b>'
        f"<span>{escape(term.plain)}</span><i>{defined(term)}</i></span>"
    )


def linked(text: str) -> str:
    """Escaped text as HTML; a term that it begins with opens its definition: `MACs, one image`, `KL after the cut`."""
    match = LEADING.match(text)
    if match is None:
        return escape(text)
    return link(BY_NAME[match.group().casefold()], match.group(), text) + escape(text[match.end() :])


def tip(text: str, *keys: str) -> str:
    """A help text in Markdown, with a line for each term that it stands on."""
    lines = (f"**{BY_KEY[key].name}**: {BY_KEY[key].plain}" for key in keys)
    return "  \n".join([text, *lines])
