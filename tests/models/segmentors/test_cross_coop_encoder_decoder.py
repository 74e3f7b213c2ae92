from __future__ import annotations

import copy

import pytest
import torch
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_coop.models import CoopTTAModel

TOPOLOGIES = ['none', 'one_way', 'cross']
FUSIONS = ['SumFusion', 'ConcatFusion', 'GatedFusion']


def predict(model, size=(64, 64), metainfo=None):
    image = torch.rand(2, 3, *size)
    samples = None
    if metainfo is not None:
        shapes = dict(img_shape=size, pad_shape=size, ori_shape=size)
        samples = [SegDataSample(metainfo={**shapes, **metainfo}) for _ in range(2)]
    with torch.no_grad():
        return image, model.eval().predict(image, samples)


@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('topology', TOPOLOGIES)
def test_every_parameter_gets_a_finite_gradient(coop_model_cfg, train_batch, topology, fusion):
    model = MODELS.build(coop_model_cfg(topology=topology, fusion=dict(type=fusion))).train()
    data = model.data_preprocessor(train_batch(), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_loss_is_the_sum_of_the_networks_losses(coop_model_cfg, train_batch):
    model = MODELS.build(coop_model_cfg(dropout_ratio=0)).train()
    data = model.data_preprocessor(train_batch(), training=True)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    logits = model(data['inputs'], mode='tensor')
    labels = torch.cat([sample.gt_sem_seg.data for sample in data['data_samples']])
    expected = {}
    for name, x in logits.items():
        x = torch.nn.functional.interpolate(x, labels.shape[1:], mode='bilinear')
        # mmseg averages over all pixels, the ignored ones included.
        loss = torch.nn.functional.cross_entropy(x, labels, ignore_index=255, reduction='sum')
        expected[name] = loss / labels.numel()
    assert sorted(losses) == sorted(
        ['loss'] + [f'decode.{n}.{k}' for n in ('top', 'bottom') for k in ('loss_ce', 'acc_seg')]
    )
    for name, loss in expected.items():
        torch.testing.assert_close(losses[f'decode.{name}.loss_ce'], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, sum(expected.values()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_without_paths_each_network_is_the_single_network_bit_for_bit(coop_model_cfg, mode):
    networks = dict(top='resnet', bottom='mobilenet')
    test_cfg = dict(mode=mode, crop_size=(48, 48), stride=(32, 32))
    both = MODELS.build(coop_model_cfg(networks, topology='none', test_cfg=test_cfg)).eval()
    image = torch.rand(2, 3, 64, 80)
    metas = [dict(img_shape=(64, 80), ori_shape=(64, 80))] * 2
    with torch.no_grad():
        outputs = both.split_outputs(both.inference(image, metas))
    for name, backbone in networks.items():
        single = MODELS.build(coop_model_cfg({name: backbone}, test_cfg=test_cfg)).eval()
        result = single.load_state_dict(both.state_dict(), strict=False)
        assert not result.missing_keys
        with torch.no_grad():
            assert torch.equal(outputs[name], single.inference(image, metas))


def test_single_network_equals_its_backbone_and_head_run_by_mmseg(coop_model_cfg):
    cfg = coop_model_cfg(dict(top='resnet'))
    single = MODELS.build(cfg).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits = single.decode_head.networks['top'](single.backbone.networks['top'](image))
        assert torch.equal(single(image)['top'], logits)


def test_one_way_leaves_the_top_network_untouched(coop_model_cfg):
    one_way = MODELS.build(coop_model_cfg(topology='one_way')).eval()
    none = MODELS.build(coop_model_cfg(topology='none')).eval()
    none.load_state_dict(one_way.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        with_path, without_path = one_way(image), none(image)
    assert torch.equal(with_path['top'], without_path['top'])
    assert not torch.allclose(with_path['bottom'], without_path['bottom'])


@pytest.mark.parametrize('site', ['input', 'aspp', 'aspp_output', 'low_level', 'decoder'])
def test_every_site_is_a_real_connection(coop_model_cfg, site):
    model = MODELS.build(coop_model_cfg(connections=[site])).eval()
    none = MODELS.build(coop_model_cfg(topology='none')).eval()
    none.load_state_dict(model.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        connected, separate = model(image), none(image)
    for name in ('top', 'bottom'):
        assert not torch.allclose(connected[name], separate[name])


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('size', [(64, 64), (65, 97), (33, 50)])
def test_predictions_hold_every_output(coop_model_cfg, mode, size):
    test_cfg = dict(mode=mode, crop_size=(48, 48), stride=(32, 32), output='bottom')
    model = MODELS.build(coop_model_cfg(test_cfg=test_cfg))
    _, samples = predict(model, size, {})
    for sample in samples:
        assert sample.output == 'bottom'
        assert sample.output_names == ('top', 'bottom', 'ensemble')
        assert sorted(sample.pred_outputs.keys()) == ['bottom', 'ensemble', 'top']
        for label_map in sample.pred_outputs.values():
            assert label_map.shape == (1, *size)
        assert torch.equal(sample.pred_sem_seg.data, sample.pred_outputs.bottom)
        assert torch.equal(sample.seg_logits.data.argmax(0), sample.pred_outputs.bottom[0])


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_the_ensemble_is_the_sum_of_the_outputs(coop_model_cfg, mode):
    test_cfg = dict(mode=mode, crop_size=(48, 48), stride=(32, 32), keep_logits=True)
    _, samples = predict(MODELS.build(coop_model_cfg(test_cfg=test_cfg)))
    logits = samples[0].logits_outputs
    torch.testing.assert_close(logits.ensemble, logits.top + logits.bottom)
    assert torch.equal(samples[0].pred_outputs.ensemble[0], logits.ensemble.argmax(0))
    assert torch.equal(samples[0].pred_sem_seg.data, samples[0].pred_outputs.ensemble)


def test_slide_over_one_window_is_whole_inference(coop_model_cfg):
    model = MODELS.build(coop_model_cfg(test_cfg=dict(crop_size=(64, 64), stride=(32, 32)))).eval()
    image = torch.rand(1, 3, 64, 64)
    metas = [dict(img_shape=(64, 64), ori_shape=(64, 64))]
    with torch.no_grad():
        whole = model.whole_inference(image, metas)
        torch.testing.assert_close(model.slide_inference(image, metas), whole, rtol=0, atol=0)


@pytest.mark.parametrize('step', ['val_step', 'test_step'])
@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_images_of_several_sizes_are_predicted_as_if_alone(coop_model_cfg, mode, step):
    test_cfg = dict(mode=mode, crop_size=(48, 48), stride=(32, 32))
    model = MODELS.build(coop_model_cfg(test_cfg=test_cfg)).eval()
    sizes = [(64, 64), (65, 50), (64, 64)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]

    def batch(*indices):
        samples = [
            SegDataSample(metainfo=dict(ori_shape=sizes[i], img_shape=sizes[i])) for i in indices
        ]
        return dict(inputs=[images[i] for i in indices], data_samples=samples)

    with torch.no_grad():
        found = getattr(model, step)(batch(0, 1, 2))
        alone = [getattr(model, step)(batch(index))[0] for index in range(3)]
    assert len(found) == 3
    for size, sample, other in zip(sizes, found, alone, strict=True):
        assert sample.output_names == ('top', 'bottom', 'ensemble')
        assert torch.equal(sample.seg_logits.data, other.seg_logits.data)
        for name in sample.output_names:
            assert sample.pred_outputs.get(name).shape == (1, *size)
            assert torch.equal(sample.pred_outputs.get(name), other.pred_outputs.get(name))


def test_padding_flip_and_original_size_reach_every_output(coop_model_cfg):
    model = MODELS.build(coop_model_cfg()).eval()
    _, plain = predict(model, (64, 96), {})
    torch.manual_seed(0)
    image = torch.rand(2, 3, 64, 96)
    meta = dict(img_shape=(64, 96), pad_shape=(64, 96))
    flipped = [
        SegDataSample(
            metainfo=dict(**meta, ori_shape=(64, 90), flip=True, flip_direction='horizontal',
                          img_padding_size=(6, 0, 0, 0))
        )
        for _ in range(2)
    ]  # fmt: skip
    with torch.no_grad():
        logits = model.split_outputs(
            model.inference(image, [sample.metainfo for sample in flipped])
        )
        samples = model.predict(image, flipped)
    for name, x in logits.items():
        expected = x[0, :, :, 6:].flip(-1).argmax(0)
        assert torch.equal(samples[0].pred_outputs.get(name)[0], expected)
    assert plain[0].pred_sem_seg.shape == (64, 96)


def tta(model, image):
    """Predict an image and its mirror image, and merge."""
    model = CoopTTAModel(module=model.eval())
    size = tuple(image.shape[2:])
    shapes = dict(img_path='', img_shape=size, pad_shape=size, ori_shape=size)
    data = dict(
        inputs=[[image[0]], [image[0].flip(-1)]],
        data_samples=[
            [SegDataSample(metainfo=dict(**shapes, flip=False))],
            [SegDataSample(metainfo=dict(**shapes, flip=True, flip_direction='horizontal'))],
        ],
    )
    with torch.no_grad():
        return model.test_step(data)[0]


def test_tta_averages_every_output(coop_model_cfg):
    model = MODELS.build(coop_model_cfg(test_cfg=dict(output='top'))).eval()
    image = torch.rand(1, 3, 64, 64) * 255
    sample = tta(model, image)
    inputs = model.data_preprocessor(dict(inputs=[image[0]]), False)['inputs']
    metas = [dict(img_shape=(64, 64), ori_shape=(64, 64))]
    with torch.no_grad():
        plain = model.split_outputs(model.inference(inputs, metas))
        mirrored = model.split_outputs(model.inference(inputs.flip(-1), metas))
    for name in ('top', 'bottom', 'ensemble'):
        expected = plain[name].softmax(1) + mirrored[name].flip(-1).softmax(1)
        assert torch.equal(sample.pred_outputs.get(name), expected.argmax(1))
    assert torch.equal(sample.pred_sem_seg.data, sample.pred_outputs.top)
    assert 'logits_outputs' not in sample


def test_tta_of_a_model_with_one_output_channel(coop_model_cfg):
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg = coop_model_cfg(num_classes=1, out_channels=1, threshold=0.5, loss_decode=loss)
    sample = tta(MODELS.build(cfg), torch.rand(1, 3, 64, 64) * 255)
    assert set(sample.pred_sem_seg.data.unique().tolist()) <= {0.0, 1.0}
    assert sample.pred_sem_seg.data.shape == (1, 64, 64)


def binary_model(coop_model_cfg, test_cfg=None):
    """A model of one output whose networks say -0.5 and -0.6: 0.38 and 0.35, over its threshold."""
    cfg = coop_model_cfg(
        num_classes=2,
        out_channels=1,
        threshold=0.3,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        test_cfg=test_cfg,
    )
    model = MODELS.build(cfg).eval()
    for head, logit in zip(model.decode_head.networks.values(), (-0.5, -0.6), strict=True):
        torch.nn.init.zeros_(head.conv_seg.weight)
        torch.nn.init.constant_(head.conv_seg.bias, logit)
    return model


@pytest.mark.parametrize('mode', ['whole', 'slide', 'tta'])
def test_an_ensemble_of_single_outputs_says_what_its_networks_agree_on(coop_model_cfg, mode):
    slide = dict(mode='slide', crop_size=(32, 32), stride=(20, 20))
    model = binary_model(coop_model_cfg, slide if mode == 'slide' else None)
    image = torch.rand(1, 3, 64, 64) * 255
    sample = tta(model, image) if mode == 'tta' else model.predict(image)[0]
    for name in ('top', 'bottom', 'ensemble'):
        assert sample.pred_outputs.get(name).unique().tolist() == [1], name
    assert sample.output == 'ensemble'


def test_accuracy_of_a_single_output(coop_model_cfg, train_batch):
    model = binary_model(coop_model_cfg).train()
    batch = train_batch(num_classes=2)
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data[:, 2:] = 0
        sample.gt_sem_seg.data[:, 48:] = 1  # 16 of the 62 rows that have labels
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode='loss')
    share = torch.tensor(100 * 16 / 62)
    torch.testing.assert_close(losses['decode.top.acc_seg'].squeeze(), share)


def test_save_and_load_reproduce_the_output(coop_model_cfg, tmp_path):
    cfg = coop_model_cfg(fusion=dict(type='GatedFusion'))
    model, other = MODELS.build(copy.deepcopy(cfg)).eval(), MODELS.build(cfg).eval()
    image = torch.rand(1, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    with torch.no_grad():
        ours, theirs = model(image), other(image)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize('size', [(65, 97), (33, 50)])
def test_odd_sizes_train(coop_model_cfg, train_batch, size):
    cfg = coop_model_cfg()
    cfg['data_preprocessor']['size'] = size
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(train_batch(size), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()


def test_one_class_trains_and_predicts(coop_model_cfg, train_batch):
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    cfg = coop_model_cfg(num_classes=1, out_channels=1, threshold=0.5, loss_decode=loss)
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(train_batch(num_classes=1), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    _, samples = predict(model)
    assert set(samples[0].pred_sem_seg.data.unique().tolist()) <= {0.0, 1.0}


def test_dropout_zero_makes_training_deterministic(coop_model_cfg):
    model = MODELS.build(coop_model_cfg(dropout_ratio=0)).train()
    image = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(image)['top'], model(image)['top'])


def test_networks_of_unequal_strides(coop_model_cfg):
    cfg = coop_model_cfg()
    cfg['backbone']['networks']['bottom']['strides'] = (1, 2, 2, 2, 1, 1, 1)  # 16 instead of 32
    model = MODELS.build(cfg).eval()
    pyramids = model.extract_feat(torch.rand(1, 3, 128, 128))
    model.backbone.networks['top'].eval()
    assert pyramids['top'][-1].shape[2:] == (8, 8)
    cfg['backbone']['networks']['top']['strides'] = (1, 2, 2, 2)
    model = MODELS.build(cfg).eval()
    pyramids = model.extract_feat(torch.rand(1, 3, 128, 128))
    assert (pyramids['top'][-1].shape[2], pyramids['bottom'][-1].shape[2]) == (4, 8)
    assert {name: x.shape[1] for name, x in model(torch.rand(1, 3, 128, 128)).items()} == dict(
        top=4, bottom=4
    )


@pytest.mark.parametrize('topology', ['cross', 'one_way'])
def test_three_networks(coop_model_cfg, train_batch, topology):
    networks = dict(a='resnet', b='mobilenet', c='resnet')
    model = MODELS.build(coop_model_cfg(networks, topology=topology)).train()
    data = model.data_preprocessor(train_batch(), training=True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert {f'decode.{name}.loss_ce' for name in networks} <= set(losses)
    _, samples = predict(model)
    assert samples[0].output_names == ('a', 'b', 'c', 'ensemble')


def test_a_network_sees_its_own_normalisation(coop_model_cfg):
    cfg = coop_model_cfg()
    mean, std = [127.5, 127.5, 127.5], [128.0, 128.0, 128.0]
    cfg['backbone']['normalize'] = dict(bottom=dict(mean=mean, std=std))
    model = MODELS.build(cfg)
    seen = {}
    for name, backbone in model.backbone.networks.items():
        backbone.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0]})
        )
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    model.extract_feat(model.data_preprocessor(dict(inputs=[image]), False)['inputs'])
    rgb = image.flip(0).float()
    torch.testing.assert_close(seen['bottom'][0], (rgb - 127.5) / 128, rtol=1e-5, atol=1e-5)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(seen['top'][0], (rgb - mean) / std, rtol=1e-5, atol=1e-5)
    assert not any('scale' in key or 'shift' in key for key in model.state_dict())


def test_weights_of_every_network_are_initialised(coop_model_cfg, tmp_path):
    cfg = coop_model_cfg()
    source = MODELS.build(cfg).backbone.networks['top']
    torch.save(source.state_dict(), tmp_path / 'resnet.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    cfg['backbone']['networks']['top']['init_cfg'] = init_cfg
    model = MODELS.build(cfg)
    model.init_weights()
    weight = model.backbone.networks['top'].state_dict()['layer1.0.conv1.weight']
    assert torch.equal(weight, source.state_dict()['layer1.0.conv1.weight'])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['decode_head'].update(topology='ring'), "topology='ring' is unknown"),
        (lambda c: c['decode_head'].update(connections=['neck']), "unknown site 'neck'.*decoder"),
        (lambda c: c['test_cfg'].update(output='left'), r"output='left' is unknown.*'ensemble'"),
        (lambda c: c['decode_head'].update(networks={}), 'networks is empty'),
        (
            lambda c: c['backbone']['networks'].update(ensemble=dict(type='ResNetV1c', depth=18)),
            "'ensemble' cannot name a network",
        ),
        (lambda c: c.update(auxiliary_head=dict(type='FCNHead')), 'auxiliary_head is set'),
        (
            lambda c: c['backbone'].update(normalize=dict(left=dict(mean=[0.0], std=[1.0]))),
            "unknown network 'left'",
        ),
        (
            lambda c: c['backbone'].update(
                normalize=dict(top=dict(mean=[0.0] * 3, std=[1.0] * 3)),
                input_normalize=dict(mean=[1.0] * 3, std=[1.0] * 3),
            ),
            'contradicts the data preprocessor',
        ),
        (
            lambda c: c.update(
                decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_classes=2)
            ),
            "'FCNHead' has no networks",
        ),
    ],
)
def test_wrong_configs_are_named(coop_model_cfg, change, message):
    cfg = coop_model_cfg()
    change(cfg)
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(in_channels=63), r"'top' was built for 63 channels at level -1.*returns 64"),
        (dict(low_level_in_channels=9), r'built for 9 channels at level 0.*returns 8'),
        (dict(in_index=5), r'takes level 5.*returns 2 levels'),
    ],
)
def test_a_head_that_does_not_fit_its_backbone_is_named(coop_model_cfg, change, message):
    cfg = coop_model_cfg()
    cfg['decode_head']['networks']['top'].update(change)
    model = MODELS.build(cfg).eval()
    with pytest.raises(ValueError, match=message):
        model(torch.rand(1, 3, 64, 64))


def test_backbone_and_head_with_different_names(coop_model_cfg):
    cfg = coop_model_cfg()
    cfg['backbone']['networks']['left'] = cfg['backbone']['networks'].pop('top')
    with pytest.raises(ValueError, match=r"backbone.networks has the names \['bottom', 'left'\]"):
        MODELS.build(cfg)


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_a_training_batch_of_one_says_what_to_change(coop_model_cfg, train_batch, norm):
    cfg = coop_model_cfg(norm_cfg=dict(type=norm))
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(train_batch(batch_size=1), training=True)
    with pytest.raises(ValueError, match=r'batch of 1.*batch_size of 2'):
        model(**data, mode='loss')


def test_a_batch_of_one_trains_with_group_norm(coop_model_cfg, train_batch):
    cfg = coop_model_cfg(norm_cfg=dict(type='GN', num_groups=4))
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(train_batch(batch_size=1), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
