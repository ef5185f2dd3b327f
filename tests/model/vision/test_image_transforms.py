"""Our few image operations equal those of torchvision, with which published policies trained."""

import pytest
import torch
from torch import nn

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.torchvision_util import import_torchvision
from diffusion_policy.model.vision.crop_randomizer import CropRandomizer
from diffusion_policy.model.vision.image_transforms import (
    CenterCrop,
    ImageNetNormalize,
    Resize,
    camera_transform,
)


def make(resize=None, crop=None, random_crop=True, keep=False, norm=False, shape=(3, 12, 16)):
    return camera_transform("cam", shape, resize, crop, random_crop, keep, norm)


@pytest.fixture(scope="module")
def transforms():
    import_torchvision()
    import torchvision.transforms

    return torchvision.transforms


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (24, 20), (12, 16)])
def test_resizing_is_that_of_torchvision(transforms, size, antialias):
    images = torch.rand(2, 3, 12, 16)
    expected = transforms.Resize(size, antialias=antialias)(images)
    assert torch.equal(Resize(*size, antialias)(images), expected)


def test_published_policies_were_trained_without_antialiasing():
    images = torch.rand(2, 3, 12, 16)
    transform, _ = make(resize=[6, 8])
    assert torch.equal(transform(images), Resize(6, 8, antialias=False)(images))
    assert not torch.equal(transform(images), Resize(6, 8, antialias=True)(images))


@pytest.mark.parametrize("size", [(6, 6), (7, 9), (5, 16), (12, 16)])
def test_the_centre_is_that_of_torchvision(transforms, size):
    images = torch.rand(2, 3, 12, 16)
    assert torch.equal(CenterCrop(*size)(images), transforms.CenterCrop(size)(images))


def test_colours_are_normalised_as_for_imagenet(transforms):
    images = torch.rand(2, 3, 4, 4)
    normalize = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert torch.allclose(ImageNetNormalize()(images), normalize(images), rtol=1e-6)


def test_steps_are_resize_crop_normalise_and_leave_no_trace_in_state_dicts():
    transform, shape = make(resize=[10, 14], crop=[6, 8], norm=True)
    assert [type(step) for step in transform] == [Resize, CropRandomizer, ImageNetNormalize]
    assert shape == (3, 6, 8)
    assert transform(torch.rand(2, 3, 12, 16)).shape == (2, 3, 6, 8)
    assert not transform.state_dict()


def test_without_options_images_pass_as_they_are():
    transform, shape = make()
    images = torch.rand(1, 3, 12, 16)
    assert torch.equal(transform(images), images)
    assert shape == (3, 12, 16)


def test_without_random_crops_the_image_is_cropped_only_when_asked_to():
    transform, shape = make(crop=[6, 8], random_crop=False)
    assert isinstance(transform[1], nn.Identity)
    assert shape == (3, 12, 16)
    transform, shape = make(crop=[6, 8], random_crop=False, keep=True)
    assert isinstance(transform[1], CenterCrop)
    assert shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": [12, 8]}, r"a crop of \[12, 8\] does not fit into the \[12, 16\] .*camera 'cam'"),
        ({"resize": [8, 8], "crop": [8, 4]}, r"does not fit into the \[8, 8\]"),
        ({"crop": [13, 8], "random_crop": False, "keep": True}, r"a crop of \[13, 8\]"),
        ({"crop": [6]}, r"crop shape of camera 'cam' is \[6\]; expected \[height, width\]"),
        ({"resize": [6]}, r"resize_shape of 'cam' is \[6\]; expected \[height, width\]"),
        ({"norm": True, "shape": (4, 12, 16)}, r"imagenet_norm is for 3 .*'cam' has 4"),
    ],
)
def test_impossible_options_are_named_with_their_camera(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
