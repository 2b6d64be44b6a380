"""Answers of the original and of the student in a run's folder: to a few images, and the classes given to all."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from upvit_core.atomic import write_atomically
from upvit_core.data import ImageSet
from upvit_core.errors import DataError
from upvit_core.evaluation import ClassReadout, Outcomes, Readout
from upvit_core.models.predict import predict
from upvit_core.records.by_class import Answered, class_name
from upvit_core.runs.folder import Answers, Run

COUNT, SIDE = 48, 96


class Examples:
    """Images at even distances among those on which a run is evaluated (`among`, indices); each is asked again and
    again. `names` are of the classes."""

    def __init__(self, run: Run, images: ImageSet, among: np.ndarray, names: Sequence[str], readout: Readout):
        self.run, self.images, self.names, self.readout = run, images, names, readout
        self.answers = dict(run.answers.answers)
        indices, self.pictures = [], list[str]()
        for index in among[np.unique(np.linspace(0, len(among) - 1, COUNT).round().astype(int))]:
            with suppress(DataError):
                self.pictures.append(self._picture(int(index)))
                indices.append(int(index))
        self.indices = np.array(indices, dtype=np.int64)

    def _picture(self, index: int) -> str:
        image = self.images.image(index)
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()

    def ask(self, moment: str, model: nn.Module, device: torch.device) -> None:
        """Keep a model's answers; a full disk loses them and nothing else."""
        if len(self.indices):
            logits, labels = predict(model, self.images.batches(COUNT, indices=self.indices, device=device))
            self.answers[moment] = list(map(self._name, self.readout.voter(model)(logits).argmax(1).tolist()))
            right = list(map(self._name, labels.tolist()))
            content = Answers(images=self.pictures, right=right, answers=self.answers)
            with suppress(OSError):
                write_atomically(self.run.folder / "examples.json", content.model_dump_json().encode())

    def keep_classes(self, before: Outcomes, after: Outcomes) -> None:
        """Save the classes that a classifier and its original give to all evaluated images."""
        if isinstance(self.readout, ClassReadout) and len(before.labels) == len(after.labels):
            columns = (column.tolist() for column in (after.labels, before.answers, after.answers))
            kept = dict(zip(("labels", "before", "after"), columns, strict=True))
            with suppress(OSError):
                content = Answered(names=list(self.names), **kept).model_dump_json()
                write_atomically(self.run.folder / "classes.json", content.encode())

    def _name(self, number: int) -> str:
        return class_name(self.names, number)
