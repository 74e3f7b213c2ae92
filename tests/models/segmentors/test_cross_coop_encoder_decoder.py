from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_coop.models import CoopTTAModel
from tests.models.base import ModelSuite

SLIDE = dict(mode='slide', crop_size=(48, 48), stride=(32, 32))
MODES = pytest.mark.parametrize('test_cfg', [dict(mode='whole'), SLIDE], ids=['whole', 'slide'])
ONE_CHANNEL = dict(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
NORMALIZE = dict(mean=[0.0] * 3, std=[1.0] * 3)


def samples_of(count, size, **metainfo):
    shapes = dict(img_path='', img_shape=size, pad_shape=size, ori_shape=size)
    return [SegDataSample(metainfo={**shapes, **metainfo}) for _ in range(count)]


AUXILIARY = dict(
    type='CoopHead',
    topology='none',
    networks=dict(bottom=dict(type='FCNHead', in_index=0, num_convs=1)),
    channels=4,
    num_classes=4,
    dropout_ratio=0,
    loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
)


def neck(**networks):
    return dict(type='CoopNeck', networks=networks)


def teach_top(cfg):
    cfg['decode_head']['transfer'] = [dict(teacher='bottom', student='top')]
    cfg['frozen'] = ['top']


def share(cfg):
    cfg['backbone']['networks']['bottom'] = cfg['backbone']['networks']['top']
    cfg['backbone']['shared'] = True
    cfg['frozen'] = ['top']


def rename_top(cfg):
    cfg['backbone']['networks']['left'] = cfg['backbone']['networks'].pop('top')


class TestCrossCoopEncoderDecoder(ModelSuite):
    variants: ClassVar = dict(
        cross={},
        none=dict(topology='none'),
        one_way=dict(topology='one_way', fusion=dict(type='ConcatFusion')),
        gated=dict(fusion=dict(type='GatedFusion')),
        three=dict(networks=dict(a='resnet', b='mobilenet', c='resnet')),
        one_channel=dict(num_classes=1, threshold=0.5, **ONE_CHANNEL),
    )
    sizes = ((33, 50), (64, 64), (65, 97))
    #: What is changed in a config, and what the error about it says.
    refusals = (
        (lambda c: c['decode_head'].update(networks={}), 'networks is empty'),
        (lambda c: c['test_cfg'].update(output='left'), r"output='left' is unknown.*'ensemble'"),
        (lambda c: c.update(auxiliary_head=dict(type='FCNHead')), "auxiliary_head type='FCNHead'"),
        (lambda c: c.update(auxiliary_head=[AUXILIARY, {}]), r'auxiliary_head.1 type=None has no'),
        (lambda c: c.update(neck=dict(type='FPN')), "neck type='FPN' has no networks; use CoopN"),
        (lambda c: c.update(neck=neck(left={})), r"the names \['top', 'bottom'\], neck.networks"),
        (
            lambda c: c.update(auxiliary_head=dict(AUXILIARY, networks=dict(left={}))),
            'head.networks',
        ),
        (
            lambda c: c['backbone'].update(
                normalize=dict(top=NORMALIZE), input_normalize=dict(NORMALIZE, mean=[1.0] * 3)
            ),
            'contradicts the data preprocessor',
        ),
        (
            lambda c: c.update(
                decode_head=dict(type='FCNHead', in_channels=8, channels=8, num_classes=2)
            ),
            "'FCNHead' has no networks",
        ),
        (lambda c: c.update(frozen=['left']), r"frozen=\['left'\] has to name some of .*'bottom'"),
        (lambda c: c.update(frozen=['top', 'bottom']), 'but not all'),
        (teach_top, "transfer has the student 'top', which is frozen"),
        (share, 'share weights with'),
        (rename_top, r"backbone.networks has the names \['bottom', 'left'\]"),
    )

    @pytest.fixture(autouse=True)
    def _configs(self, coop_model_cfg, train_batch):
        self.cfg, self.batch = coop_model_cfg, train_batch

    def build(self, variant=None, **changed):
        return MODELS.build(self.cfg(**(self.variants[variant] if variant else {}), **changed))

    def shapes(self, model, size, batch):
        assert model.output_names == (*model.decode_head.networks, 'ensemble')
        channels, quarter = model.decode_head.out_channels, tuple(-(-side // 4) for side in size)
        return [(batch, channels, *quarter)] * len(model.decode_head.network_names)

    def objective(self, model, inputs):
        classes = model.decode_head.num_classes
        samples = self.batch(inputs[0].shape[2:], num_classes=classes)['data_samples']
        return model.parse_losses(model(*inputs, samples, mode='loss'))[0]

    def test_what_cannot_be_built_is_named(self, refusal):
        change, message = refusal
        cfg = self.cfg()
        change(cfg)
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg)

    def test_loss_is_the_sum_of_the_networks_losses(self):
        model = self.build(dropout_ratio=0).train()
        data = model.data_preprocessor(self.batch(), training=True)
        total, losses = model.parse_losses(model(**data, mode='loss'))
        logits = model(data['inputs'], mode='tensor')
        labels = torch.cat([sample.gt_sem_seg.data for sample in data['data_samples']])
        assert {*losses} == {
            'loss',
            *(f'decode.{n}.{k}' for n in ('top', 'bottom') for k in ('loss_ce', 'acc_seg')),
        }
        expected = {}
        for name, x in logits.items():
            x = F.interpolate(x, labels.shape[1:], mode='bilinear')
            # mmseg averages over all pixels, the ignored ones included.
            loss = F.cross_entropy(x, labels, ignore_index=255, reduction='sum')
            expected[name] = loss / labels.numel()
            found = losses[f'decode.{name}.loss_ce']
            torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(total, sum(expected.values()), rtol=1e-5, atol=1e-6)

    def test_frozen_networks_teach_and_stay_as_they_are(self):
        cfg = self.cfg(
            dict(top='resnet', bottom='mobilenet', light='mobilenet'),
            topology=dict(top=['bottom'], bottom=['top']),
            fusion=dict(type='GatedFusion'),
            transfer=[dict(teacher='ensemble', student='light')],
        )
        fcn = AUXILIARY['networks']['bottom']
        auxiliary = dict(AUXILIARY, networks=dict(top=fcn, light=fcn))
        model = MODELS.build({**cfg, 'auxiliary_head': auxiliary, 'frozen': ['top', 'bottom']})
        before = {name: value.clone() for name, value in model.train().state_dict().items()}
        data = model.data_preprocessor(self.batch(), training=True)
        total, losses = model.parse_losses(model(**data, mode='loss'))
        assert {name.split('.')[1] for name in losses if name != 'loss'} == {'light'}
        total.backward()
        torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1).step()
        changed = {
            n for n, value in model.state_dict().items() if not torch.equal(value, before[n])
        }
        assert changed == {name for name in before if '.light.' in name}

    def losses(self, **parts):
        cfg = dict(self.cfg(dropout_ratio=0), **parts)
        torch.manual_seed(0)
        batch, model = self.batch(), MODELS.build(cfg).train()
        data = model.data_preprocessor(batch, training=True)
        return model, model.parse_losses(model(**data, mode='loss'))

    @pytest.mark.parametrize('several', [False, True], ids=['one', 'list'])
    def test_an_auxiliary_head_teaches_the_networks_that_it_names(self, several):
        model, (total, losses) = self.losses(
            auxiliary_head=[AUXILIARY] * 2 if several else AUXILIARY
        )
        names = ['aux_0', 'aux_1'] if several else ['aux']
        found = {key for key in losses if key.startswith('aux')}
        assert found == {f'{name}.bottom.{key}' for name in names for key in ('loss_ce', 'acc_seg')}
        parts = [value for key, value in losses.items() if 'loss_' in key]
        torch.testing.assert_close(total, sum(parts))
        total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        # Nothing but its weight tells how much the auxiliary head teaches.
        for weight in (0.0, 0.8):
            loss = dict(type='CrossEntropyLoss', loss_weight=weight)
            weighted, (_, changed) = self.losses(auxiliary_head=dict(AUXILIARY, loss_decode=loss))
            name = 'aux.bottom.loss_ce'
            torch.testing.assert_close(
                changed[name], weight / 0.4 * losses[f'{names[0]}.bottom.loss_ce']
            )
            changed[name].backward()
            stem = weighted.backbone.networks['bottom'].conv1.conv.weight
            assert bool(stem.grad.any()) == (weight > 0)

    def test_a_neck_stands_between_a_backbone_and_its_head(self):
        top = dict(type='FPN', out_channels=6, num_outs=2)
        cfg = dict(self.cfg(), neck=neck(top=top))
        cfg['decode_head'] = dict(cfg['decode_head'], networks=dict(top={}, bottom={}))
        torch.manual_seed(0)
        model = MODELS.build(cfg).eval()
        assert model.neck.networks['top'].in_channels == [8, 64]
        assert model.decode_head.input_channels == dict(top={-1: 6, 0: 6}, bottom={-1: 80, 0: 8})
        image = torch.rand(2, 3, 64, 64)
        plain = model.backbone(image)
        expected = dict(plain, top=model.neck.networks['top'](plain['top']))
        assert all(map(torch.equal, model(image).values(), model.decode_head(expected).values()))
        model.check_channels()
        model.train()
        data = model.data_preprocessor(self.batch(), training=True)
        model.parse_losses(model(**data, mode='loss'))[0].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize(
        ('top', 'head', 'message'),
        [
            (dict(in_channels=[8, 60]), {}, r"'top' was built for \[8, 60\] .*\[8, 64\]"),
            ({}, dict(in_channels=64), r"of network 'top' was built for 64 .* has|returns 6 there"),
        ],
    )
    def test_channels_around_a_neck_are_compared(self, top, head, message):
        cfg = dict(self.cfg(), neck=neck(top=dict(top, type='FPN', out_channels=6, num_outs=2)))
        cfg['decode_head'] = dict(cfg['decode_head'], networks=dict(top=head, bottom={}))
        with pytest.raises(ValueError, match=message):
            MODELS.build(cfg)

    @MODES
    @torch.no_grad()
    def test_without_paths_each_network_is_the_single_network_bit_for_bit(self, test_cfg):
        networks = dict(top='resnet', bottom='mobilenet')
        both = self.build(networks=networks, topology='none', test_cfg=test_cfg).eval()
        image = torch.rand(2, 3, 64, 80)
        metas = [dict(img_shape=(64, 80), ori_shape=(64, 80))] * 2
        outputs = both.split_outputs(both.inference(image, metas))
        for name, backbone in networks.items():
            single = self.build(networks={name: backbone}, test_cfg=test_cfg).eval()
            assert not single.load_state_dict(both.state_dict(), strict=False).missing_keys
            assert torch.equal(outputs[name], single.inference(image, metas))

    @MODES
    @pytest.mark.parametrize('chosen', ['bottom', 'ensemble'])
    @torch.no_grad()
    def test_predictions_hold_every_output(self, test_cfg, chosen, size):
        test_cfg = dict(test_cfg, output=chosen, keep_logits=True)
        model = self.build(test_cfg=test_cfg).eval()
        for sample in model.predict(torch.rand(2, 3, *size), samples_of(2, size)):
            assert sample.output == chosen
            assert sample.output_names == ('top', 'bottom', 'ensemble')
            logits, maps = sample.logits_outputs, sample.pred_outputs
            assert sorted(maps.keys()) == sorted(logits.keys()) == ['bottom', 'ensemble', 'top']
            for name in sample.output_names:
                assert maps.get(name).shape == (1, *size)
                assert torch.equal(logits.get(name).argmax(0), maps.get(name)[0])
            assert torch.equal(sample.pred_sem_seg.data, maps.get(chosen))
            assert torch.equal(sample.seg_logits.data, logits.get(chosen))
            torch.testing.assert_close(logits.ensemble, logits.top + logits.bottom)

    @pytest.mark.parametrize('step', ['val_step', 'test_step'])
    @MODES
    @torch.no_grad()
    def test_images_of_several_sizes_are_predicted_as_if_alone(self, test_cfg, step):
        step = getattr(self.build(test_cfg=test_cfg).eval(), step)
        sizes = [(64, 64), (65, 50), (64, 64)]
        images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
        samples = [sample for size in sizes for sample in samples_of(1, size)]
        found = step(dict(inputs=images, data_samples=samples))
        assert len(found) == 3
        for size, sample, image in zip(sizes, found, images, strict=True):
            (alone,) = step(dict(inputs=[image], data_samples=samples_of(1, size)))
            assert torch.equal(sample.seg_logits.data, alone.seg_logits.data)
            for name in ('top', 'bottom', 'ensemble'):
                assert sample.pred_outputs.get(name).shape == (1, *size)
                assert torch.equal(sample.pred_outputs.get(name), alone.pred_outputs.get(name))

    @torch.no_grad()
    def test_padding_flip_and_original_size_reach_every_output(self):
        model = self.build().eval()
        image = torch.rand(2, 3, 64, 96)
        change = dict(flip=True, flip_direction='horizontal', img_padding_size=(6, 0, 0, 0))
        samples = samples_of(2, (64, 96), **change, ori_shape=(64, 90))
        inference = model.inference(image, [sample.metainfo for sample in samples])
        (sample, _) = model.predict(image, samples)
        for name, x in model.split_outputs(inference).items():
            expected = x[0, :, :, 6:].flip(-1).argmax(0)
            assert torch.equal(sample.pred_outputs.get(name)[0], expected)

    def test_a_network_sees_its_own_normalisation(self):
        cfg = self.cfg()
        cfg['backbone']['normalize'] = dict(bottom=dict(mean=[127.5] * 3, std=[128.0] * 3))
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

    def test_weights_of_every_network_are_initialised(self, tmp_path):
        cfg = self.cfg()
        expected = MODELS.build(cfg).backbone.networks['top'].state_dict()
        torch.save(expected, tmp_path / 'resnet.pth')
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
        cfg['backbone']['networks']['top']['init_cfg'] = init_cfg
        model = MODELS.build(cfg)
        model.init_weights()
        weight = model.backbone.networks['top'].state_dict()['layer1.0.conv1.weight']
        assert torch.equal(weight, expected['layer1.0.conv1.weight'])

    @pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'GN'])
    def test_a_training_batch_of_one_needs_a_norm_without_batch_statistics(self, norm):
        norm_cfg = dict(type=norm, **(dict(num_groups=4) if norm == 'GN' else {}))
        model = self.build(norm_cfg=norm_cfg).train()
        data = model.data_preprocessor(self.batch(batch_size=1), training=True)
        if norm == 'GN':
            assert model.parse_losses(model(**data, mode='loss'))[0].isfinite()
        else:
            with pytest.raises(ValueError, match=r'batch of 1.*batch_size of 2'):
                model(**data, mode='loss')

    @torch.no_grad()
    def tta(self, model, image):
        """Predict an image and its mirror image, and merge."""
        size = tuple(image.shape[2:])
        mirrored = samples_of(1, size, flip=True, flip_direction='horizontal')
        data = dict(
            inputs=[[image[0]], [image[0].flip(-1)]],
            data_samples=[samples_of(1, size, flip=False), mirrored],
        )
        return CoopTTAModel(module=model.eval()).test_step(data)[0]

    @torch.no_grad()
    def test_tta_averages_every_output(self):
        model = self.build(test_cfg=dict(output='top')).eval()
        image = torch.rand(1, 3, 64, 64) * 255
        sample = self.tta(model, image)
        inputs = model.data_preprocessor(dict(inputs=[image[0]]), False)['inputs']
        metas = [dict(img_shape=(64, 64), ori_shape=(64, 64))]
        plain = model.split_outputs(model.inference(inputs, metas))
        mirrored = model.split_outputs(model.inference(inputs.flip(-1), metas))
        for name in ('top', 'bottom', 'ensemble'):
            expected = plain[name].softmax(1) + mirrored[name].flip(-1).softmax(1)
            assert torch.equal(sample.pred_outputs.get(name), expected.argmax(1))
        assert torch.equal(sample.pred_sem_seg.data, sample.pred_outputs.top)
        assert 'logits_outputs' not in sample

    def binary(self, **changed):
        """Of one output; its networks say -0.5 and -0.6: 0.38 and 0.35, over its threshold."""
        model = self.build(num_classes=2, threshold=0.3, **ONE_CHANNEL, **changed).eval()
        for head, logit in zip(model.decode_head.networks.values(), (-0.5, -0.6), strict=True):
            torch.nn.init.zeros_(head.conv_seg.weight)
            torch.nn.init.constant_(head.conv_seg.bias, logit)
        return model

    @pytest.mark.parametrize('mode', ['whole', 'slide', 'tta'])
    def test_an_ensemble_of_single_outputs_says_what_its_networks_agree_on(self, mode):
        model = self.binary(test_cfg=SLIDE if mode == 'slide' else None)
        image = torch.rand(1, 3, 64, 64) * 255
        sample = self.tta(model, image) if mode == 'tta' else model.predict(image)[0]
        for name in ('top', 'bottom', 'ensemble'):
            assert sample.pred_outputs.get(name).shape == (1, 64, 64)
            assert sample.pred_outputs.get(name).unique().tolist() == [1], name

    def test_accuracy_of_a_single_output(self):
        model = self.binary().train()
        batch = self.batch(num_classes=2)
        for sample in batch['data_samples']:
            sample.gt_sem_seg.data[:, 1:] = 0
            sample.gt_sem_seg.data[:, 48:] = 1  # 16 of the 63 rows that have labels
        losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
        assert losses['decode.top.acc_seg'].item() == pytest.approx(100 * 16 / 63)
