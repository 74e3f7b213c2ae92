from __future__ import annotations

import copy
import logging

import pytest
import timm
import torch
from mmseg.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_coop.models.backbones.xception import Xception, convert_timm_state_dict

CHANNELS = (128, 256, 728, 1024, 2048)
STRIDES = {8: (2, 4, 8, 8, 8), 16: (2, 4, 8, 16, 16), 32: (2, 4, 8, 16, 32)}
PARAMETERS = {41: 24_920_560, 65: 37_867_312, 71: 40_289_736}
TOLERANCE = 1e-4


def relative_difference(ours, reference):
    norm = reference.norm()
    assert norm > 0, 'a comparison with zeros shows nothing'
    return ((ours - reference).norm() / norm).item()


@torch.no_grad()
def randomize_batch_norm(model):
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


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
    scope='module', params=[(65, 8), (65, 16), (65, 32), (71, 16)], ids='{0[0]}-stride{0[1]}'.format
)
def pair(request):
    """Our network and timm's with the same weights, made once for both modes."""
    depth, output_stride = request.param
    torch.manual_seed(0)
    reference = timm.create_model(f'xception{depth}', output_stride=output_stride)
    randomize_batch_norm(reference)
    ours = Xception(depth=depth, output_stride=output_stride)
    ours.load_state_dict(convert_timm_state_dict(reference.state_dict()))
    return ours, reference


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
def test_levels_and_gradients_are_those_of_timm(pair, training):
    ours, reference = pair
    for model in pair:
        model.zero_grad()
        model.train(training)
    x = torch.randn(2, 3, 65, 65, requires_grad=True)
    reference_x = x.detach().clone().requires_grad_()

    levels = ours(x)
    reference_levels = timm_levels(reference, reference_x)
    assert len(levels) == len(reference_levels) == 5
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


def test_levels_are_timms_features_only():
    reference = timm.create_model('xception41', features_only=True).eval()
    ours = Xception(depth=41, output_stride=32).eval()
    whole = timm.create_model('xception41').state_dict()
    backbone = {key: value for key, value in whole.items() if not key.startswith('head')}
    # The feature extractor flattens the names, but keeps the order.
    reference.load_state_dict(dict(zip(reference.state_dict(), backbone.values(), strict=True)))
    ours.load_state_dict(convert_timm_state_dict(whole))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for level, reference_level in zip(ours(x), reference(x), strict=True):
            assert relative_difference(level, reference_level) <= TOLERANCE
    assert tuple(reference.feature_info.channels()) == ours.out_channels
    assert tuple(reference.feature_info.reduction()) == ours.strides


@pytest.mark.parametrize('depth', [41, 65, 71])
def test_number_of_parameters(depth):
    with torch.device('meta'):
        ours = Xception(depth=depth)
        reference = timm.create_model(f'xception{depth}', num_classes=0)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == PARAMETERS[depth]
    assert count == sum(parameter.numel() for parameter in reference.parameters())


@pytest.mark.parametrize('size', [(65, 97), (64, 48)])
@pytest.mark.parametrize('output_stride', [8, 16, 32])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3, 4), (1, 4), (2,)])
def test_declared_channels_and_strides(output_stride, out_indices, size):
    with torch.device('meta'):
        model = Xception(depth=41, output_stride=output_stride, out_indices=out_indices)
        levels = model(torch.empty(2, 3, *size))
    assert model.out_channels == tuple(CHANNELS[i] for i in out_indices)
    assert model.strides == tuple(STRIDES[output_stride][i] for i in out_indices)
    assert isinstance(levels, tuple)
    assert len(levels) == len(out_indices)
    for level, channels, stride in zip(levels, model.out_channels, model.strides, strict=True):
        assert level.shape == (2, channels, *(-(-length // stride) for length in size))


def test_built_from_registry_with_defaults():
    with torch.device('meta'):
        model = MODELS.build(dict(type='Xception'))
    assert (model.out_channels, model.strides) == (CHANNELS, STRIDES[16])
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ('norm_cfg', 'kind', 'eps'),
    [
        (dict(type='SyncBN', requires_grad=True), nn.SyncBatchNorm, 1e-3),
        (dict(type='BN', eps=1e-5), nn.BatchNorm2d, 1e-5),
    ],
)
def test_norm_cfg(norm_cfg, kind, eps):
    given = copy.deepcopy(norm_cfg)
    with torch.device('meta'):
        model = Xception(depth=41, norm_cfg=norm_cfg)
        names = Xception(depth=41).state_dict().keys()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all(isinstance(norm, kind) for norm in norms)
    assert {norm.eps for norm in norms} == {eps}
    assert norm_cfg == given
    assert model.state_dict().keys() == names


@pytest.mark.parametrize('depth', [41, 65, 71])
def test_parameters_do_not_depend_on_output_stride(depth):
    with torch.device('meta'):
        shapes = [
            {k: v.shape for k, v in Xception(depth=depth, output_stride=s).state_dict().items()}
            for s in (8, 16, 32)
        ]
    assert shapes[0] == shapes[1] == shapes[2]


def depthwise_dilations(module):
    return [
        conv.dilation[0]
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d) and conv.groups > 1
    ]


@pytest.mark.parametrize(('output_stride', 'rate'), [(8, 4), (16, 2), (32, 1)])
def test_multi_grid_scales_second_exit_block_only(output_stride, rate):
    with torch.device('meta'):
        plain = Xception(depth=41, output_stride=output_stride)
        grid = Xception(depth=41, output_stride=output_stride, multi_grid=(1, 2, 4))
        levels = grid(torch.empty(1, 3, 65, 65))
    assert depthwise_dilations(plain.exit_flow[1]) == [rate, rate, rate]
    assert depthwise_dilations(grid.exit_flow[1]) == [rate, 2 * rate, 4 * rate]
    for part in ('entry_flow', 'middle_flow'):
        assert depthwise_dilations(getattr(grid, part)) == depthwise_dilations(getattr(plain, part))
    assert depthwise_dilations(grid.exit_flow[0]) == depthwise_dilations(plain.exit_flow[0])
    assert levels[-1].shape[-1] == -(-65 // output_stride)


def test_in_channels():
    with torch.device('meta'):
        assert Xception(depth=41, in_channels=4)(torch.empty(1, 4, 32, 32))[1].shape[1] == 256


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
def test_frozen_stages(frozen_stages):
    model = Xception(depth=41, out_indices=(4,), frozen_stages=frozen_stages)
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    out = model(torch.randn(2, 3, 32, 32))[0]
    if frozen_stages < 3:
        out.square().mean().backward()
    stages = ['stem', 'entry_flow', 'middle_flow', 'exit_flow']
    for index, stage in enumerate(stages):
        frozen = index <= frozen_stages
        for parameter in getattr(model, stage).parameters():
            assert parameter.requires_grad != frozen
            assert (parameter.grad is None) == frozen
        for name, module in getattr(model, stage).named_modules(prefix=stage):
            if isinstance(module, _BatchNorm):
                assert module.training != frozen
                same = torch.equal(module.running_mean, before[f'{name}.running_mean'])
                assert same == frozen


def test_norm_eval():
    model = Xception(depth=41, norm_eval=True).train()
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.eval().training


@pytest.mark.parametrize('frozen_stages', [-1, 0])
def test_recomputation_gives_equal_gradients(frozen_stages):
    plain = Xception(depth=41, frozen_stages=frozen_stages).train()
    saving = Xception(depth=41, frozen_stages=frozen_stages, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.middle_flow[0].register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 33, 33)
    for model in (plain, saving):
        sum(level.square().mean() for level in model(x)).backward()
    assert len(calls) == 2, 'the block was not recomputed'
    for (name, parameter), recomputed in zip(
        plain.named_parameters(), saving.parameters(), strict=True
    ):
        assert (parameter.grad is None) == (recomputed.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(recomputed.grad, parameter.grad, msg=name)


def test_default_initialisation():
    model = Xception(depth=41).train()
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
    levels = model(torch.randn(2, 3, 65, 65))
    assert all(0.1 < level.std() < 10 for level in levels)


def test_pretrained_checkpoint(tmp_path):
    reference = timm.create_model('xception41')
    checkpoint = tmp_path / 'xception41.pth'
    torch.save(convert_timm_state_dict(reference.state_dict()), checkpoint)
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    # Frozen parameters are loaded too.
    model = Xception(depth=41, frozen_stages=1, init_cfg=init_cfg)
    logging.getLogger('mmengine').setLevel(logging.WARNING)
    model.init_weights()
    expected = convert_timm_state_dict(reference.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(depth=50), r'depth must be one of \(41, 65, 71\), got 50'),
        (dict(output_stride=4), 'output_stride must be 8, 16 or 32, got 4'),
        (dict(out_indices=(1, 5)), r'levels from 0 to 4.*got \(1, 5\)'),
        (dict(out_indices=(-1,)), r'levels from 0 to 4.*got \(-1,\)'),
        (dict(out_indices=(4, 1)), r'ascending order, got \(4, 1\)'),
        (dict(out_indices=(1, 1)), r'each once.*got \(1, 1\)'),
        (dict(out_indices=()), r'at least one.*got \(\)'),
        (dict(multi_grid=(1, 2)), r'three positive integers.*got \(1, 2\)'),
        (dict(multi_grid=(1, 2, 0)), r'three positive integers.*got \(1, 2, 0\)'),
        (dict(frozen_stages=4), 'frozen_stages must be -1 .* got 4'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Xception(**arguments)


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError):
        Xception(65)


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

    def test_refuses_preactivation_variant(self):
        with torch.device('meta'):
            state_dict = timm.create_model('xception41p').state_dict()
        with pytest.raises(ValueError, match='unexpected keys'):
            convert_timm_state_dict(state_dict)

    @pytest.mark.parametrize('state_dict', [{}, {'conv1.weight': torch.zeros(1)}])
    def test_refuses_other_networks(self, state_dict):
        with pytest.raises(ValueError, match=r'13 or 21 or 23 blocks .* got 0 blocks'):
            convert_timm_state_dict(state_dict)
