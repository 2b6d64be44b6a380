"""The transforms of images before a model reads them."""

import torch
from torchvision.transforms import functional as TF

from tests.support.pictures import COLOUR, GREY, picture
from upvit_core.data import eval_transform, training_transform


def test_grey_model_reads_colour_images_and_the_other_way_round() -> None:
    colour, grey = picture(0, (28, 28)), picture(1, (16, 16), "L")
    x = eval_transform(GREY)(colour)
    assert torch.equal(x, (TF.to_tensor(colour.convert("L")) - GREY["mean"][0]) / GREY["std"][0])
    assert eval_transform({**COLOUR, "crop_pct": 1.0})(grey).shape == (3, 16, 16)
    palette = picture(2, mode="P")
    assert eval_transform(COLOUR)(palette).shape == (3, 16, 16)


def test_means_of_three_channels_serve_a_grey_model() -> None:
    x = eval_transform({**GREY, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)})(picture(0, (28, 28), "L"))
    assert torch.allclose(x, (TF.to_tensor(picture(0, (28, 28), "L")) - 0.2) / 0.5)


def test_small_images_are_shifted_and_flipped_and_nothing_else() -> None:
    image = picture(0, (28, 28), "L")
    plain = eval_transform(GREY)(image)[0]
    black = -GREY["mean"][0] / GREY["std"][0]
    padded = torch.nn.functional.pad(plain, [2] * 4, value=black)
    shifted = [padded[row : row + 28, column : column + 28] for row in range(5) for column in range(5)]
    allowed = torch.stack([*shifted, *(each.flip(1) for each in shifted)])
    transform = training_transform(GREY)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        match = (allowed - transform(image)[0]).abs().amax((1, 2)) < 1e-5
        assert match.sum() == 1
        found.add(int(match.nonzero()))
    assert len(found) > 20


def test_small_images_of_another_size_are_resized_first() -> None:
    assert training_transform(GREY)(picture(0, (40, 60))).shape == (1, 28, 28)


def test_large_images_are_cropped_at_random_by_timm() -> None:
    cfg = {**COLOUR, "input_size": (3, 64, 48)}
    transform = training_transform(cfg, scale=(0.5, 1.0), color_jitter=0.3, auto_augment="rand-m5", re_prob=0.5)
    x = transform(picture(0, (90, 120)))
    assert (x.shape, x.dtype) == ((3, 64, 48), torch.float32)
    assert "RandomResizedCropAndInterpolation" in repr(training_transform(cfg))
    assert "ColorJitter" not in repr(training_transform(cfg))
