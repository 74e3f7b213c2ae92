"""Images of any number of channels are normalised by channel."""

from __future__ import annotations

import pytest
import torch
from mmseg.registry import MODELS

from mmseg_coop.models import CoopDataPreProcessor
from tests.conftest import labelled

COLOURS = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0])


def build(**arguments):
    return MODELS.build(dict(type='CoopDataPreProcessor', **arguments))


def test_colours_are_treated_as_mmseg_does_and_further_channels_keep_their_place():
    images = [torch.randint(0, 256, (5, 6, 4), dtype=torch.uint8) for _ in range(2)]
    mean, std = [*COLOURS['mean'], 5.0, 6.0], [*COLOURS['std'], 2.0, 3.0]
    found = build(mean=mean, std=std, bgr_to_rgb=True, size=(8, 8), pad_val=7)
    data = dict(inputs=images, data_samples=labelled(2, (6, 4)))
    found = found(data, training=True)['inputs']
    stock = MODELS.build(
        dict(type='SegDataPreProcessor', **COLOURS, bgr_to_rgb=True, size=(8, 8), pad_val=7)
    )
    data = dict(inputs=[image[:3] for image in images], data_samples=labelled(2, (6, 4)))
    assert torch.equal(found[:, :3], stock(data, training=True)['inputs'])
    expected = (torch.stack(images)[:, 3:] - torch.tensor([5.0, 6.0]).view(2, 1, 1)) / torch.tensor(
        [2.0, 3.0]
    ).view(2, 1, 1)
    torch.testing.assert_close(found[:, 3:, :6, :4], expected)
    assert (found[:, :, 6:] == 7).all()


@pytest.mark.parametrize('number', [1, 3, 5])
def test_one_value_holds_for_all_channels(number):
    image = torch.randint(0, 256, (number, 4, 4))
    (found,) = build(mean=[3], std=[2])(dict(inputs=[image]))['inputs']
    assert torch.equal(found, (image - 3) / 2)


def test_without_normalisation_an_image_stays_as_it_is():
    (found,) = CoopDataPreProcessor()(dict(inputs=[torch.full((4, 2, 2), 200)]))['inputs']
    assert torch.equal(found, torch.full((4, 2, 2), 200.0))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(mean=[0, 0], std=[1]), r'mean=\[0, 0\] and std=\[1\] differ in number'),
        (dict(std=[1]), 'mean=None and std=.* differ'),
        (dict(mean=[0], std=[0.0]), 'std=.*divides'),
    ],
)
def test_what_cannot_be_built_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_an_image_of_other_channels_is_named():
    preprocessor, samples = build(mean=[0] * 4, std=[1] * 4), labelled(2, (2, 2))
    samples[1].set_metainfo(dict(img_path='b.png'))
    data = dict(inputs=[torch.zeros(4, 2, 2), torch.zeros(3, 2, 2)], data_samples=samples)
    with pytest.raises(ValueError, match=r'mean and std of 4 channels, but image b\.png has 3'):
        preprocessor(data)
