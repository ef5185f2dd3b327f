"""Crops are cut at the right places, drawn in the published order, and never silently wrong."""

import pytest
import torch
from generators import seeded

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.model.vision.crop_randomizer import (
    AlwaysRandomCrop,
    CropRandomizer,
    append_position_channels,
    center_crop,
    crop_image_from_indices,
    crops_drawn_by,
    sample_random_image_crops,
)


def pixels(*shape):
    """Images in which no two numbers are equal."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def sliced(images, indices, height, width):
    """The crops, one slice after the other."""
    lead, n_crops = indices.shape[:-2], indices.shape[-2]
    flat = images.reshape(-1, *images.shape[-3:])
    corners = indices.reshape(len(flat), n_crops, 2).tolist()
    crops = [
        image[:, row : row + height, column : column + width]
        for image, of_image in zip(flat, corners, strict=True)
        for row, column in of_image
    ]
    return torch.stack(crops).reshape(*lead, n_crops, images.shape[-3], height, width)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.parametrize("n_crops", [1, 3])
def test_crops_equal_slices_of_the_images(lead, n_crops):
    images = pixels(*lead, 2, 9, 12)
    indices = torch.stack(
        [
            torch.randint(0, 9 - 4 + 1, (*lead, n_crops)),
            torch.randint(0, 12 - 7 + 1, (*lead, n_crops)),
        ],
        dim=-1,
    )
    crops = crop_image_from_indices(images, indices, 4, 7)
    assert crops.shape == (*lead, n_crops, 2, 4, 7)
    assert torch.equal(crops, sliced(images, indices, 4, 7))


def test_crops_of_images_that_are_not_contiguous():
    images = pixels(3, 9, 12, 2).permute(0, 3, 1, 2)
    crops, indices = sample_random_image_crops(images, 5, 6, num_crops=2)
    assert torch.equal(crops, sliced(images, indices, 5, 6))


def test_rows_are_drawn_before_columns_from_the_cpu_generator():
    torch.manual_seed(3)
    crops, indices = sample_random_image_crops(pixels(2, 3, 1, 20, 30), 8, 9, num_crops=4)
    after = torch.rand(1)

    torch.manual_seed(3)
    rows, columns = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    expected = torch.stack([(rows * 12).floor(), (columns * 21).floor()], dim=-1).long()
    assert torch.equal(indices, expected)
    assert crops.shape == (2, 3, 4, 1, 8, 9)
    assert torch.equal(after, torch.rand(1))


def test_every_offset_but_the_last_is_drawn():
    _, indices = sample_random_image_crops(torch.zeros(500, 1, 8, 10), 5, 6, num_crops=1)
    assert set(indices[..., 0].flatten().tolist()) == {0, 1, 2}
    assert set(indices[..., 1].flatten().tolist()) == {0, 1, 2, 3}


def test_crops_pass_gradients_to_their_pixels_only():
    images = pixels(1, 1, 4, 4).requires_grad_()
    crop_image_from_indices(images, torch.tensor([[[1, 2]]]), 2, 2).sum().backward()
    expected = torch.zeros(4, 4)
    expected[1:3, 2:4] = 1
    assert torch.equal(images.grad[0, 0], expected)


@pytest.mark.parametrize("corner", [[-1, 0], [0, -1], [5, 0], [0, 6]])
def test_a_corner_outside_of_the_image_is_refused(corner):
    with pytest.raises(ValueError, match=r"outside of rows 0\.\.4 and columns 0\.\.5"):
        crop_image_from_indices(torch.zeros(1, 1, 8, 9), torch.tensor([[corner]]), 4, 4)


def test_a_crop_larger_than_the_images_is_refused_when_cutting_too():
    with pytest.raises(ConfigError, match=r"a crop of \[9, 4\] does not fit into the \[8, 8\]"):
        crop_image_from_indices(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 2).long(), 9, 4)


@pytest.mark.parametrize(
    ("size", "crop", "offset"),
    [(10, 4, 3), (9, 4, 2), (11, 4, 4), (7, 4, 2), (5, 4, 0), (4, 4, 0)],  # halves go to even
)
def test_the_centre_rounds_half_a_pixel_to_the_even_offset(size, crop, offset):
    images = pixels(1, size, size)
    assert center_crop(images, crop, crop)[0, 0, 0] == images[0, offset, offset]
    assert center_crop(images, crop, crop).shape == (1, crop, crop)


def test_training_crops_randomly_and_evaluation_crops_the_centre():
    crop = CropRandomizer((2, 9, 9), 4, 4)
    images = pixels(3, 2, 9, 9)
    torch.manual_seed(0)
    expected, _ = sample_random_image_crops(images, 4, 4, 1)
    torch.manual_seed(0)
    assert torch.equal(crop(images), expected[:, 0])

    before = torch.get_rng_state()
    assert torch.equal(crop.eval()(images), images[:, :, 2:6, 2:6])
    assert torch.equal(torch.get_rng_state(), before)


def test_crops_of_one_image_stay_together_and_are_averaged():
    crop = CropRandomizer((1, 6, 6), 3, 3, num_crops=2)
    images = pixels(2, 1, 6, 6)
    for training in (True, False):
        crops = crop.train(training).forward_in(images)
        assert crops.shape == (4, 1, 3, 3)
        assert all((crops[i] >= 36).all() == (i >= 2) for i in range(4))
    features = pixels(4, 5)
    assert torch.equal(crop.forward_out(features), features.reshape(2, 2, 5).mean(1))
    assert CropRandomizer((1, 6, 6), 3, 3).forward_out(features) is features


@pytest.mark.parametrize("training", [True, False])
def test_position_channels_tell_where_a_pixel_was(training):
    crop = CropRandomizer((1, 8, 16), 4, 4, pos_enc=True).train(training)
    crops = crop(pixels(5, 1, 8, 16) % 128)
    assert list(crops.shape[1:]) == crop.output_shape_in() == [3, 4, 4]
    value, row, column = crops.unbind(1)
    assert torch.equal(row * 8 * 16 + column * 16, value)


def test_position_channels_are_row_then_column_in_the_unit_interval():
    images = append_position_channels(torch.zeros(2, 3, 1, 4, 5))
    assert images.shape == (2, 3, 3, 4, 5)
    assert torch.equal(images[1, 2, 1, :, 3], torch.tensor([0, 0.25, 0.5, 0.75]))
    assert torch.allclose(images[1, 2, 2, 3], torch.tensor([0, 0.2, 0.4, 0.6, 0.8]))


def test_a_crop_that_is_always_random_is_so_in_evaluation():
    crop = AlwaysRandomCrop((1, 9, 9), 4, 4).eval()
    images = pixels(3, 1, 9, 9)
    torch.manual_seed(0)
    expected, _ = sample_random_image_crops(images, 4, 4, 1)
    torch.manual_seed(0)
    assert torch.equal(crop(images), expected[:, 0])


def test_crops_of_a_row_are_drawn_by_its_own_generator():
    crop = AlwaysRandomCrop((3, 12, 10), 6, 5).eval()
    images = torch.rand(6, 3, 12, 10)  # two per row
    with crops_drawn_by(crop, seeded(4, 5, 6), images_per_row=2):
        together = crop(images)
    for row in range(3):
        with crops_drawn_by(crop, seeded(4 + row), images_per_row=2):
            assert torch.equal(crop(images[2 * row :][:2]), together[2 * row :][:2])
    assert crop.generator is None  # nobody's afterwards


def test_crops_of_episodes_reach_all_places_that_crops_in_training_reach():
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    crop = AlwaysRandomCrop((3, 4, 4), 2, 1).eval()
    with crops_drawn_by(crop, torch.Generator().manual_seed(0)):
        corners = {int(crop(image)[0, 0, 0, 0]) for _ in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}  # row 0 or 1, column 0 to 2


def test_crops_of_episodes_may_have_position_channels():
    crop = AlwaysRandomCrop((1, 8, 8), 4, 4, pos_enc=True).eval()
    with crops_drawn_by(crop, seeded(0)):
        (cropped,) = crop(torch.zeros(1, 1, 8, 8))
    assert cropped.shape == (3, 4, 4)
    assert torch.allclose(cropped[1].diff(dim=0), torch.full((3, 4), 1 / 8))


def test_generators_do_not_matter_in_training():
    crop, images = AlwaysRandomCrop((3, 12, 10), 6, 5).train(), torch.rand(3, 3, 12, 10)
    results = []
    for generator in (None, seeded(1, 2, 3)):
        torch.manual_seed(3)
        with crops_drawn_by(crop, generator):
            results.append(crop(images))
    assert torch.equal(*results)


@pytest.mark.parametrize("size", [(9, 4), (4, 9), (10, 4), (0, 4)])
def test_a_crop_that_is_not_smaller_than_the_image_is_refused(size):
    with pytest.raises(ConfigError, match=r"does not fit into the \[9, 9\] pixels of the images;"):
        CropRandomizer((3, 9, 9), *size)


def test_images_of_another_size_than_announced_are_refused():
    crop = CropRandomizer((3, 9, 9), 4, 4).eval()
    with pytest.raises(ConfigError, match=r"shape \[2, 3, 8, 9\] .* for \[batch, 3, 9, 9\]"):
        crop(torch.zeros(2, 3, 8, 9))


def test_shapes_and_repr_tell_what_it_does_and_it_has_no_state():
    crop = CropRandomizer((3, 9, 9), 4, 5)
    assert crop.output_shape_in() == [3, 4, 5]
    assert crop.output_shape_out((64,)) == [64]
    assert not crop.state_dict()
    assert "input_shape=[3, 9, 9], crop_size=[4, 5], num_crops=1" in repr(crop)
