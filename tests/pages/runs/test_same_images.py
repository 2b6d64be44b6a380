"""The lines under a run's test images."""

from PIL import Image

from pages.runs.same_images import summary
from pages.services.evaluation import data_uri
from pages.widgets.tables import breakable, image_tag
from upvit_core.runs.folder import Answers


def test_a_run_without_an_original_is_not_compared_with_one() -> None:
    start, now = ["cat", "cat"], ["dog", "cat"]
    alone = Answers(images=["data:image/png;base64,"] * 2, right=["dog", "cat"], answers={"start": start, "now": now})
    assert summary(alone) == "Of 2 test images 1 were right before training; 2 are now"
    cut = alone.model_copy(update={"answers": {"teacher": now, "surgery": start, "now": now}})
    assert summary(cut) == "Of 2 test images the cut changed 1; 1 of them have the original's answer again"


def test_names_of_folders_break_and_photographs_are_smooth() -> None:
    assert breakable("a_<b>") == "a_<wbr>&lt;b&gt;"
    small, photograph = (image_tag(data_uri(Image.new("RGB", (side, side))), "") for side in (28, 64))
    assert 'class="crisp"' in small
    assert 'class="smooth"' in photograph
