"""The published DeiT-B scores, and folders like theirs."""

from pathlib import Path

import pytest

from upvit_core.errors import ScoresError
from upvit_core.importance.published import check_rank_lists, import_scores
from upvit_core.planning.ratios import plan_preset
from upvit_core.profiling.macs import count_parameters
from upvit_core.records.known_shapes import deit_shape

FFN_NOT_CHOSEN = (670, 81, 31, 1, 0, 0, 0, 0, 1, 13, 36, 14)


@pytest.fixture(scope="module")
def published(shared_data: Path):
    folder = shared_data / "up-vit-scores-2k"
    return folder, import_scores(folder / "importance")


def test_reads_deit_b(published) -> None:
    folder, scores = published
    assert scores.shape == deit_shape("base")
    assert scores.images == 2000
    first = float((folder / "importance" / "Deit_base_12_neck_768_kl_2k.txt").read_text().split()[0])
    assert scores.residual[0] == first
    assert import_scores(folder).digest == scores.digest


def test_published_lists_against_their_own_scores(published) -> None:
    checks = {check.key: check.not_chosen for check in check_rank_lists(published[1], published[0])}
    assert checks["residual"] == 0
    assert [checks[f"attention.{b}"] for b in range(1, 12)] == [0] * 11
    assert "attention.0" not in checks
    assert tuple(checks[f"ffn.{b}"] for b in range(12)) == FFN_NOT_CHOSEN


def test_presets_have_the_published_sizes(published) -> None:
    assert count_parameters(plan_preset(published[1], "deit_small").shape_after) == 22_050_664
    assert count_parameters(plan_preset(published[1], "deit_tiny").shape_after) == 5_717_416


def _small(folder: Path, *, images: str = "5k") -> Path:
    folder.mkdir()
    (folder / f"D_1_neck_64_kl_{images}.txt").write_text("1\n" * 64)
    (folder / f"D_1_attn_64_kl_0_{images}.txt").write_text("2e-05\n" * 64)
    (folder / f"D_1_ffn_128_kl_B_0_{images}.txt").write_text("-1e-9\n" * 128)
    return folder


def test_other_sizes_and_counts(tmp_path: Path) -> None:
    scores = import_scores(_small(tmp_path / "s"))
    assert scores.images == 5000
    assert scores.attention(0)[0] == 2e-05
    assert scores.ffn(0)[0] == -1e-9
    assert scores.shape.blocks[0].num_heads == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "D_1_attn_64_kl_0_5k.txt").unlink(), "lacks the file with the scores of attention.0"),
        (lambda f: (f / "D_1_neck_64_kl_5k.txt").write_text("1\n" * 63), "D_1_neck_64_kl_5k.txt has 63 lines"),
        (
            lambda f: (f / "D_1_neck_64_kl_5k.txt").write_text("1\n" * 10 + "x\n" + "1\n" * 53),
            "line 11: 'x' is not a number",
        ),
        (lambda f: (f / "D_1_neck_64_kl_5k.txt").write_text("nan\n" * 64), "line 1: 'nan' is not finite"),
        (lambda f: (f / "E_1_neck_64_kl_5k.txt").write_text("1\n" * 64), "hold the scores of residual"),
        (lambda f: (f / "D_1_ffn_128_kl_1_5k.txt").write_text("1\n" * 128), "does not have"),
        (lambda f: (f / "D_1_ffn_128_kl_0_2k.txt").write_text("1\n" * 128), "hold the scores of ffn.0"),
    ],
)
def test_refusals_name_file_and_line(tmp_path: Path, change, message: str) -> None:
    folder = _small(tmp_path / "s")
    change(folder)
    with pytest.raises(ScoresError, match=message):
        import_scores(folder)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ScoresError, match="holds no published score file"):
        import_scores(tmp_path)
    with pytest.raises(ScoresError, match="no folder"):
        import_scores(tmp_path / "none")
