"""The origin of numbers: digests, seeds, versions, device."""

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from upvit_core.profiling.calibration import processor_name
from upvit_core.records.plan import PruningPlan
from upvit_core.records.scores import ImportanceScores

PACKAGES = ("torch", "timm", "accelerate", "numpy", "safetensors", "plotly")


def of_plan(plan: PruningPlan, scores: ImportanceScores | None) -> list[tuple[str, str]]:
    """Digests of model, scores and plan; how the scores were made."""
    rows = [
        ("Model", f"{plan.model or plan.shape_before.name}, digest {plan.model_digest or 'not known'}"),
        ("Plan", f"digest {plan.digest}, counts {plan.basis}"),
    ]
    if scores is None:
        return [*rows, ("Scores", f"{plan.criterion or 'not known'}, digest {plan.scores_digest or 'not known'}")]
    data = f"{scores.images:,} images of {scores.data or 'data not named'}, digest {scores.data_digest or 'not known'}"
    return [
        *rows,
        ("Scores", f"{scores.criterion}, {scores.unit}, digest {scores.digest}"),
        ("Scored on", f"{data}, seed {scores.seed}"),
    ]


def of_machine() -> list[tuple[str, str]]:
    """Versions and the processor of the machine that writes the report."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    now = datetime.now(UTC)
    return [
        ("Versions", f"Python {platform.python_version()}, {', '.join(versions)}"),
        ("Written on", f"{processor_name()}, {platform.system()}, {now:%Y-%m-%d %H:%M} UTC"),
    ]
