from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_coop.models.backbones.xception import Xception, convert_timm_state_dict
from tests.apis.test_folding import randomize
from tests.models.base import ModelSuite

CHANNELS = (128, 256, 728, 1024, 2048)
STRIDES = {8: (2, 4, 8, 8, 8), 16: (2, 4, 8, 16, 16), 32: (2, 4, 8, 16, 32)}
PARAMETERS = {41: 24_920_560, 65: 37_867_312, 71: 40_289_736}
TOLERANCE = 1e-4


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def rates_of(model):
    """Dilations of the depthwise convolutions."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [conv.dilation[0] for conv in convs if conv.groups > 1]


def relative_difference(ours, reference):
    norm = reference.norm()
    assert norm > 0, 'a comparison with zeros shows nothing'
    return ((ours - reference).norm() / norm).item()


def timm_levels(model, x):
    """The features that timm declares, taken where it says, whichever its version."""
    taken = []
    hooks = [
        model.get_submodule(info['module']).register_forward_hook(
            lambda module, inputs, output: taken.append(output)
        )
        for info in model.feature_info
    ]
    model.forward_features(x)
    for hook in hooks:
        hook.remove()
    return taken


@pytest.fixture(
    scope='module', params=[(41, 8), (65, 16), (71, 32)], ids='{0[0]}-stride{0[1]}'.format
)
def pair(request):
    """Our network and timm's with the same weights, made once for both modes."""
    depth, output_stride = request.param
    torch.manual_seed(0)
    reference = timm.create_model(f'xception{depth}', output_stride=output_stride)
    randomize(reference)
    ours = Xception(depth=depth, output_stride=output_stride)
    ours.load_state_dict(convert_timm_state_dict(reference.state_dict()))
    return ours, reference


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_levels_and_gradients_are_those_of_timm(pair, training):
    ours, reference = pair
    for model in pair:
        model.zero_grad()
        model.train(training)
    x = torch.randn(2, 3, 33, 49, requires_grad=True)
    reference_x = x.detach().clone().requires_grad_()

    levels = ours(x)
    reference_levels = timm_levels(reference, reference_x)
    assert len(levels) == len(reference_levels) == 5
    assert ours.out_channels == tuple(info['num_chs'] for info in reference.feature_info)
    assert ours.strides == tuple(info['reduction'] for info in reference.feature_info)
    for level, reference_level in zip(levels, reference_levels, strict=True):
        assert level.shape == reference_level.shape
        assert relative_difference(level, reference_level) <= TOLERANCE

    # Each level counts in the gradient, by its own random weights.
    weights = [torch.randn_like(level) for level in levels]
    for outputs in (levels, reference_levels):
        sum((out * w).mean() for out, w in zip(outputs, weights, strict=True)).backward()
    assert relative_difference(x.grad, reference_x.grad) <= TOLERANCE
    gradients = dict(reference.state_dict())
    gradients |= {name: parameter.grad for name, parameter in reference.named_parameters()}
    gradients = convert_timm_state_dict(gradients)
    for name, parameter in ours.named_parameters():
        assert relative_difference(parameter.grad, gradients[name]) <= TOLERANCE, name

    # In training mode both have now updated their running statistics.
    buffers = convert_timm_state_dict(reference.state_dict())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=TOLERANCE, atol=1e-6)


class TestXception(ModelSuite):
    type = 'Xception'
    arguments: ClassVar = dict(depth=41, in_channels=4)
    variants: ClassVar = dict(grid=dict(multi_grid=(1, 2, 4), out_indices=(1, 4)))
    sizes = ((33, 49), (64, 48))
    refusals = (
        (dict(depth=50), r'depth=50 is unknown; choose one of \(41, 65, 71\)'),
        (dict(in_channels=0), 'in_channels=0 is not a positive integer'),
        (dict(output_stride=4), r'output_stride=4 is unknown; choose one of \(8, 16, 32\)'),
        (dict(frozen_stages=4), r'frozen_stages=4 is unknown; choose one of \(-1, 0, 1, 2, 3\)'),
        (dict(multi_grid=(1, 2)), r'multi_grid=\(1, 2\) has to hold three numbers'),
        (dict(multi_grid=(1, 2, 0)), r'multi_grid=\(1, 2, 0\): number=0 is not a positive'),
        *(
            (dict(out_indices=indices), r'out_indices=.* have to be levels from 0 to 4, at least')
            for indices in ((1, 5), (-1,), (4, 1), (1, 1), ())
        ),
    )

    def shapes(self, model, size, batch):
        return [
            (batch, channels, *(-(-length // stride) for length in size))
            for channels, stride in zip(model.out_channels, model.strides, strict=True)
        ]

    @pytest.mark.parametrize('depth', [41, 65, 71])
    def test_parameters_are_timms_at_every_stride(self, depth):
        with torch.device('meta'):
            reference = timm.create_model(f'xception{depth}', num_classes=0)
            models = [Xception(depth=depth, output_stride=stride) for stride in STRIDES]
        count = sum(parameter.numel() for parameter in reference.parameters())
        shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in models]
        assert shapes[0] == shapes[1] == shapes[2]
        for model, strides in zip(models, STRIDES.values(), strict=True):
            assert (model.out_channels, model.strides) == (CHANNELS, strides)
            assert count == PARAMETERS[depth] == sum(p.numel() for p in model.parameters())

    @pytest.mark.parametrize(
        ('norm_cfg', 'kind', 'eps'),
        [
            ({}, nn.BatchNorm2d, 1e-3),
            (dict(norm_cfg=dict(type='SyncBN', requires_grad=True)), nn.SyncBatchNorm, 1e-3),
            (dict(norm_cfg=dict(type='BN', eps=1e-5)), nn.BatchNorm2d, 1e-5),
        ],
    )
    def test_norm_cfg(self, norm_cfg, kind, eps):
        given = copy.deepcopy(norm_cfg)
        with torch.device('meta'):
            norms = batch_norms(Xception(depth=41, **norm_cfg))
        assert all(isinstance(norm, kind) for norm in norms)
        assert {norm.eps for norm in norms} == {eps}
        assert norm_cfg == given

    @pytest.mark.parametrize(('output_stride', 'rate'), [(8, 4), (16, 2), (32, 1)])
    def test_multi_grid_scales_the_second_exit_block_only(self, output_stride, rate):
        with torch.device('meta'):
            plain = Xception(depth=41, output_stride=output_stride)
            grid = Xception(depth=41, output_stride=output_stride, multi_grid=(1, 2, 4))
        assert rates_of(plain.exit_flow[1]) == [rate, rate, rate]
        assert rates_of(grid.exit_flow[1]) == [rate, 2 * rate, 4 * rate]
        assert rates_of(grid)[:-3] == rates_of(plain)[:-3]

    @pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
    def test_frozen_stages(self, frozen_stages):
        model = self.build(out_indices=(4,), frozen_stages=frozen_stages)
        assert model.train() is model
        before = copy.deepcopy(model.state_dict())
        out = model(torch.randn(2, 4, 32, 32))[0]
        if frozen_stages < 3:
            out.square().mean().backward()
        for index, stage in enumerate(('stem', 'entry_flow', 'middle_flow', 'exit_flow')):
            frozen = index <= frozen_stages
            for parameter in getattr(model, stage).parameters():
                assert parameter.requires_grad != frozen
                assert (parameter.grad is None) == frozen
            for name, module in getattr(model, stage).named_modules(prefix=stage):
                if isinstance(module, _BatchNorm):
                    assert module.training != frozen
                    same = torch.equal(module.running_mean, before[f'{name}.running_mean'])
                    assert same == frozen

    def test_norm_eval(self):
        model = self.build(norm_eval=True).train()
        assert model.training
        assert not any(norm.training for norm in batch_norms(model))
        assert not model.eval().training

    @pytest.mark.parametrize('frozen_stages', [-1, 0])
    def test_recomputation_gives_equal_gradients(self, frozen_stages):
        plain = self.build(frozen_stages=frozen_stages).train()
        saving = self.build(frozen_stages=frozen_stages, with_cp=True).train()
        saving.load_state_dict(plain.state_dict())
        calls = []
        saving.middle_flow[0].register_forward_pre_hook(lambda *_: calls.append(1))
        x = torch.randn(2, 4, 33, 33)
        for model in (plain, saving):
            sum(level.square().mean() for level in model(x)).backward()
        assert len(calls) == 2, 'the block was not recomputed'
        expected = [parameter.grad for parameter in plain.parameters()]
        assert (expected[0] is None) == (frozen_stages == 0)
        torch.testing.assert_close([p.grad for p in saving.parameters()], expected)

    def test_default_initialisation(self):
        model = self.build().train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        model.init_weights()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()
            elif isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.3)
        # Batch norm's eps is small beside the variance it sees, so the signal keeps its size.
        levels = model(torch.randn(2, 4, 65, 65))
        assert all(0.1 < level.std() < 10 for level in levels)


class TestConvertTimmStateDict:
    @pytest.fixture
    def state_dict(self):
        with torch.device('meta'):
            return timm.create_model('xception41').state_dict()

    def test_drops_classifier_only(self, state_dict):
        converted = convert_timm_state_dict(state_dict)
        assert len(converted) == len(state_dict) - 2
        for key in ('head.fc.weight', 'head.fc.bias'):
            del state_dict[key]
        assert convert_timm_state_dict(state_dict).keys() == converted.keys()

    def test_names_missing_and_unexpected_keys(self, state_dict):
        del state_dict['blocks.3.stack.conv2.bn_pw.running_mean']
        state_dict['blocks.3.other.weight'] = torch.zeros(1)
        with pytest.raises(ValueError, match='xception41') as error:
            convert_timm_state_dict(state_dict)
        assert 'missing keys: blocks.3.stack.conv2.bn_pw.running_mean;' in str(error.value)
        assert 'unexpected keys: blocks.3.other.weight' in str(error.value)

    def test_long_lists_of_keys_are_cut(self, state_dict):
        state_dict |= {f'extra{i}': torch.zeros(1) for i in range(12)}
        with pytest.raises(ValueError, match=r'extra9 and 2 more$'):
            convert_timm_state_dict(state_dict)

    @pytest.mark.parametrize('state_dict', [{}, {'conv1.weight': torch.zeros(1)}])
    def test_refuses_other_networks(self, state_dict):
        with pytest.raises(ValueError, match=r'13 or 21 or 23 blocks .* got 0 blocks'):
            convert_timm_state_dict(state_dict)
