import subprocess
import sys

import pytest
from pydantic import ValidationError

from upvit_core.training.settings import PRESETS, DistillSettings, evaluation_steps, usual_preset


def test_the_recipe_needs_no_torch() -> None:
    code = "import sys, upvit_core.training.settings, upvit_core.runs.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_released_form_is_6_4_times_the_mean() -> None:
    assert PRESETS["released_code"].alpha == pytest.approx(6.4)


def test_a_repaired_start_is_trained_gently() -> None:
    assert usual_preset(repaired=False) == "letter"
    assert usual_preset(repaired=False, small=True) == "demo"
    assert usual_preset(repaired=True) == usual_preset("vit", repaired=True, small=True) == "repaired"
    assert usual_preset("gpt2", repaired=True, small=True) == "language"
    gentle, usual = PRESETS["repaired"], PRESETS["demo"]
    assert (gentle.lr, gentle.cutmix) == (usual.lr / 10, 0)
    assert gentle.batch_size == usual.batch_size


@pytest.mark.parametrize(
    "values", [{"lr": 0}, {"lr": float("nan")}, {"batch_size": 1}, {"temperature": 0}, {"ema_decay": 1}, {"unknown": 1}]
)
def test_illegal_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DistillSettings(**values)


@pytest.mark.parametrize("total", [2, 3, 9, 10, 93, 1000, 100_000])
@pytest.mark.parametrize("per_epoch", [1, 7, 400])
@pytest.mark.parametrize("every", [None, 0.25, 1.0, 3.0, 1e-6])
def test_evaluations_lie_inside_the_run(total: int, per_epoch: int, every: float | None) -> None:
    steps = evaluation_steps(total, per_epoch, every)
    assert list(steps) == sorted(set(steps))
    assert all(0 < step < total for step in steps)
    if every is None and total >= 10:
        assert len(steps) >= 7
        assert steps[0] <= total / 100 + 1  # a curve lives from its first seconds


def test_evaluations_by_share_of_an_epoch() -> None:
    assert evaluation_steps(40, 10, 1.0) == (10, 20, 30)
    assert evaluation_steps(20, 10, 0.5) == (5, 10, 15)
    assert evaluation_steps(1, 1, None) == ()
