"""Tasks: images, classes and top-1; or text, next tokens and perplexity.

Every view takes its words and units from here, so that none asks which architecture it shows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from upvit_core.errors import RunError, UnsupportedModelError
from upvit_core.files import Values
from upvit_core.records.criteria import CRITERIA
from upvit_core.records.family import load
from upvit_core.records.scores import ImportanceScores
from upvit_core.records.shape import ModelShape


@dataclass(frozen=True)
class Task:
    """The words of a task. `key` names its number in records; a `result` is an `Evaluation` or has the same fields.

    Means are over `sample`s (images; tokens). A batch consists of `batch_items` (images; blocks of text), each a row of
    `units`; a model gives one of `outputs`. `data` is what a user must give, `source` the places it may come from.
    has_pictures: inputs can be shown as pictures. has_classes: the head can be replaced or left out, so that the model
    can learn other images and be exported as a backbone or as ONNX.
    """

    key: Literal["top1", "perplexity"]
    name: str
    axis: str
    sign: str
    digits: int
    sample: str
    batch_item: str
    batch_items: str
    unit: str
    units: str
    output: str
    outputs: str
    data: str
    them: str
    source: str
    verb: str
    more_is_better: bool
    has_pictures: bool
    has_classes: bool

    @property
    def samples(self) -> str:
        return f"{self.sample}s"

    @property
    def inputs(self) -> str:
        """Name of the field that asks what to measure on."""
        return self.data.removeprefix("a ").capitalize()

    @property
    def wanted(self) -> str:
        """The missing data, and the page that takes it."""
        return f"{self.data}; give {self.them} on Start"

    @property
    def in_percent(self) -> bool:
        return self.sign == " %"

    @property
    def nats(self) -> str:
        """`nats an image` or `nats a token`."""
        return f"nats a{'n' * (self.sample[0] in 'aeiou')} {self.sample}"

    def value(self, result: object) -> float:
        return float(getattr(result, self.key))

    def interval(self, result: object) -> tuple[float, float]:
        """95 % interval of the value."""
        low, high = getattr(result, f"{self.key}_interval")
        return low, high

    def format(self, value: float, digits: int | None = None) -> str:
        """`91.7 %` or `16.74`; NaN, of images without labels, is not known."""
        if value != value:
            return "not known"
        return f"{value:,.{self.digits if digits is None else digits}f}{self.sign}"

    def format_interval(self, result: object) -> str:
        """`91.2 – 92.3`."""
        low, high = self.interval(result)
        return f"{low:,.{self.digits}f} – {high:,.{self.digits}f}"

    def gap(self, change: float) -> str:
        """`+1.3 points` or `-2.41`."""
        return f"{change:+,.{self.digits}f}{' points' if self.in_percent else ''}"


IMAGES = Task(
    "top1", "Top-1", "top-1, %", " %", 1, sample="image", batch_item="image", batch_items="images",
    unit="patch", units="patches", output="class", outputs="classes", data="images", them="them",
    source="A folder of class folders, an archive of one, or a timm data set.", verb="classify it",
    more_is_better=True, has_pictures=True, has_classes=True,
)  # fmt: skip
FEATURES = replace(
    IMAGES, name="k-NN top-1", axis="k-NN top-1, %", output="feature", outputs="features",
    verb="compute its features",
)  # fmt: skip
"""Of models without a classifier; `key` stays, so that records and runs of all images read alike."""
TEXT = Task(
    "perplexity", "Perplexity", "perplexity (less is better)", "", 2, sample="token", batch_item="block of text",
    batch_items="blocks of text", unit="token", units="tokens", output="next token", outputs="next tokens",
    data="a text", them="it", source="A UTF-8 file, or a folder of .txt files.", verb="continue each of its tokens",
    more_is_better=False, has_pictures=False, has_classes=False,
)  # fmt: skip


def task_of(shape: ModelShape) -> Task:
    return FEATURES if shape.features else {"images": IMAGES, "text": TEXT}[shape.architecture.task]


def task_of_rows(rows: Iterable[Values]) -> Task:
    """The task of a run, recognised by the columns of its metrics.jsonl."""
    keys = {key for row in rows for key in row}
    return TEXT if "perplexity" in keys else FEATURES if "cosine" in keys else IMAGES


def refuse_language(shape: ModelShape, what: str, instead: str) -> None:
    """Raises UnsupportedModelError where a model reads text, and `what` is defined for images alone."""
    if not task_of(shape).has_classes:
        raise UnsupportedModelError(f"{what}, and {shape.name} reads text; {instead}.")


def check_teacher(student: ModelShape, teacher: ModelShape) -> None:
    """Raises RunError where two models cannot answer to the same images with the same classes."""
    ours, theirs = (
        f"{shape.outputs} {'features' if shape.features else 'classes'} and images of "
        f"{' x '.join(map(str, (*shape.img_size, shape.in_chans)))}"
        for shape in (student, teacher)
    )
    if ours != theirs:
        raise RunError(
            f"The student has {ours}, the teacher {theirs}; choose a student that was cut from this teacher, or give "
            "both the same image size (--img-size)."
        )


def model_name(shape: ModelShape) -> str:
    """`DeiT-B` for the well-known shapes, else the shape's own name."""
    stock: dict[str, ModelShape] = load(shape.architecture.stock)(shape)
    widths = (shape.embed_dim, shape.blocks, shape.stages, shape.img_size)
    same = (name for name, s in stock.items() if (s.embed_dim, s.blocks, s.stages, s.img_size) == widths)
    return next(same, shape.name)


def criterion_name(scores: ImportanceScores) -> str:
    """The criterion of the scores, in a few words."""
    if scores.criterion == "kl (published)":
        return "published scores"
    known = CRITERIA.get(scores.criterion)
    return known.title if known else f"{scores.criterion} scores"


def scores_words(scores: ImportanceScores | None) -> str:
    """`published scores, 2,000 images`."""
    if scores is None:
        return "not scored yet"
    named = criterion_name(scores)
    return f"{named}, {scores.images:,} {task_of(scores.shape).batch_items}" if scores.images else named


def data_name(name: str) -> str:
    """The demo's images by their own name."""
    return "Fashion-MNIST" if name == "demo" else name
