"""The transforms of images before a model reads them."""

import random

import torch
from timm.data.transforms_factory import create_transform
from torchvision.transforms import functional as TF

from tests.support.pictures import COLOUR, GREY, picture
from upvit_core.data import eval_transform, training_transform
from upvit_core.data.transforms import data_config


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
    mean, std = GREY["mean"][0], GREY["std"][0]
    black = -mean / std
    padded = torch.nn.functional.pad(plain, [2] * 4, value=black)
    shifted = [padded[row : row + 28, column : column + 28] for row in range(5) for column in range(5)]
    allowed = torch.stack([*shifted, *(each.flip(1) for each in shifted)])
    transform = training_transform(GREY)
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        match = (allowed - (transform(image)[0] / 255 - mean) / std).abs().amax((1, 2)) < 1e-5
        assert match.sum() == 1
        found.add(int(match.nonzero()))
    assert len(found) > 20


def test_small_images_of_another_size_are_resized_first() -> None:
    assert training_transform(GREY)(picture(0, (40, 60))).shape == (1, 28, 28)


def test_large_images_are_cropped_at_random_by_timm() -> None:
    for base, mode in ((COLOUR, "RGB"), (GREY, "L")):
        cfg = {**base, "input_size": (*base["input_size"][:1], 64, 48)}
        used = {name: value for name, value in data_config(cfg).items() if not name.startswith("crop")}
        timms = create_transform(**used, is_training=True, color_jitter=None, normalize=False)
        for seed in range(20):
            image = picture(seed, (90, 120), mode)
            random.seed(seed), torch.manual_seed(seed)
            expected = timms(image)
            random.seed(seed), torch.manual_seed(seed)
            x = training_transform(cfg)(image)
            assert (x.shape, x.dtype) == (expected.shape, torch.uint8)
            assert (x.int() - expected.int()).abs().max() <= 3
