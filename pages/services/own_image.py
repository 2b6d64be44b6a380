"""The answers of the open model, or of a measured plan, to a picture that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pages.services import evaluation, jobs, limits
from pages.services.open_model import OpenModel
from upvit_core.errors import DataError
from upvit_core.files import digest
from upvit_core.paths import place_of
from upvit_core.records.by_class import class_name
from upvit_core.records.plan import PruningPlan

MEGABYTES = 32
LIKELIEST = 5
WANTED = (
    f"give a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file of at most {MEGABYTES} MB and 64 million pixels"  # as `decode`
)


@dataclass(frozen=True)
class Answers:
    """`seen`: the picture as the model reads it, a data URI; `likeliest`: classes with probabilities, highest first."""

    seen: str
    likeliest: tuple[tuple[str, float], ...]


def read(path: str) -> bytes:
    """The content of an image file on the server. Raises LimitError, DataError."""
    from upvit_core.data.disk import read_picture

    limits.confine(path)
    place = Path(place_of(path))
    try:
        return checked(read_picture(place), path)
    except OSError as error:
        raise DataError(f"{path} cannot be read as a picture; {WANTED}.") from error


def checked(content: bytes, name: str) -> bytes:
    """`content` itself. Raises DataError if it is too large."""
    if len(content) > MEGABYTES << 20:
        raise DataError(f"{name} is too large; {WANTED}.")
    return content


def answers(
    model: OpenModel, content: bytes, name: str, plan: PruningPlan | None = None, *, repair: bool = False
) -> jobs.Job[Answers]:
    """The job that asks the original, or with `plan` the model cut by it."""

    def work(report: jobs.Report) -> Answers:
        import torch
        from torchvision.transforms.functional import to_pil_image

        from upvit_core.data.images import READ_ERRORS
        from upvit_core.data.pictures import decode
        from upvit_core.data.transforms import eval_transform
        from upvit_core.models.predict import outputs_of

        live = model.weights()
        asked = live.model if plan is None else evaluation.thin_model(model, plan, report, repair=repair)
        try:
            image = decode(content)
            pixels, seen = (eval_transform(live.pretrained_cfg, normalise=normal)(image) for normal in (True, False))
        except READ_ERRORS as error:
            raise DataError(f"{name} cannot be read as a picture; {WANTED}.") from error
        with torch.no_grad():
            x = pixels[None].to(next(asked.parameters()).device)
            shares = outputs_of(asked, x)[0].double().softmax(-1)
        names = live.class_names or model.images("val").answer_names
        found = shares.topk(min(LIKELIEST, len(shares)))
        likeliest = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        picture = evaluation.data_uri(to_pil_image(seen))
        return Answers(picture, tuple((class_name(names, number), share) for number, share in likeliest))

    whose = "original" if plan is None else f"{plan.digest}{' repaired' * repair}"
    return jobs.ensure(f"own image {digest(content)} {model.data_key} {whose}", work, "Looking at your image")
