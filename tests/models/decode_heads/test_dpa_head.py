from __future__ import annotations

import warnings
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from mmseg_coop.models import DPAHead
from tests.conftest import labelled
from tests.models.base import DeployedSuite, SiteSuite


class OnMaps(torch.nn.Module):
    """Compilers and exporters take tensors, the head takes a pyramid."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head([x])


class TestDPAHead(SiteSuite, DeployedSuite):
    type = 'DPAHead'
    arguments: ClassVar = dict(
        in_channels=12, channels=8, num_classes=3, key_sizes=(3, 4), value_sizes=(5,)
    )
    variants: ClassVar = dict(
        plain={},
        sum=dict(branch_fusion='sum'),
        after=dict(convolutions='after'),
        after_sum=dict(convolutions='after', branch_fusion='sum'),
        none=dict(convolutions='none', maximum='column', channel_qkv='conv'),
        none_sum=dict(convolutions='none', branch_fusion='sum'),
        conv=dict(qkv='conv'),
        conv_max=dict(qkv='conv', pooling='max', scaled=True, similarity='square'),
        spa_only=dict(attentions=('spa',)),
        no_attention=dict(attentions=(), convolutions='none'),
        one_loss=dict(loss_weights=dict(spa=0, cpa=0)),
        no_norm=dict(dropout_ratio=0, norm_cfg=None),
    )
    sizes = ((9, 7), (2, 3), (1, 1))
    deployed = ('conv',)
    exported_sizes = ((20, 15), (14, 22))
    compilations = (('conv', 'static'),)
    compiled_by = '2.7'  # the first that follows generators
    refusals = (
        (dict(num_classes=0), 'num_classes=0 is not a positive integer'),
        (dict(convolutions='all'), r"convolutions='all' .*'both', 'after', 'none'"),
        (dict(attentions=('pam',)), r"attentions='pam' .*'spa', 'cpa'"),
        (dict(branch_fusion='max'), r"branch_fusion='max' .*'concat', 'sum'"),
        (dict(similarity='dot'), r"similarity='dot' is unknown"),
        (dict(qkv='linear'), r"qkv='linear' is unknown"),
        (dict(key_sizes=()), 'holds no numbers'),
        (dict(loss_weights=dict(pam=1)), r"unknown output 'pam'; .*'fused', 'spa', 'cpa'"),
        (dict(loss_weights=dict(spa=-1)), 'cannot train the head; give numbers from 0 on'),
        (dict(loss_weights=dict(fused=0)), "more than 0 for 'fused'"),
        (dict(input_transform='resize_concat', in_index=[0, 1]), 'DPAHead takes one'),
    )

    def inputs(self, size, batch=2):
        return ([torch.rand(batch, 5, 20, 20), torch.rand(batch, 12, *size)],)

    def shapes(self, model, size, batch):
        return [(batch, 3, *size)]

    def module(self, variant):
        return OnMaps(super().module(variant)).eval()

    @torch.no_grad()
    def test_joins_two_branches(self, variant):
        head = self.build(variant).eval()
        (x,) = self.inputs((9, 7))
        outputs = []
        for branch in (head.spa, head.cpa):
            feature = x[-1] if branch.conv_in is None else branch.conv_in(x[-1])
            feature = branch.attention(feature)
            outputs.append(feature if branch.conv_out is None else branch.conv_out(feature))
        joined = sum(outputs) if 'sum' in variant else torch.cat(outputs, dim=1)
        expected = F.conv2d(joined, head.conv_seg.weight, head.conv_seg.bias)
        torch.testing.assert_close(head(x), expected)

    @pytest.mark.parametrize(
        ('convolutions', 'first', 'attention', 'out'),
        [('both', 8, 8, 8), ('after', None, 12, 8), ('none', None, 12, 12)],
    )
    def test_widths(self, convolutions, first, attention, out):
        head = self.build(convolutions=convolutions, channel_qkv='conv', qkv='conv')
        for branch in (head.spa, head.cpa):
            assert (branch.conv_in and branch.conv_in.out_channels) == first
            assert branch.attention.in_channels == attention
            assert branch.attention.value.out_channels == attention
            assert branch.conv_seg.in_channels == head.channels == out
        assert head.conv_seg.in_channels == 2 * out
        summed = self.build(convolutions=convolutions, branch_fusion='sum')
        assert summed.conv_seg.in_channels == out

    @torch.no_grad()
    @pytest.mark.parametrize('without', ['spa', 'cpa'])
    def test_a_branch_without_its_attention_is_that_before_the_attention_learned(self, without):
        head = self.build().eval()
        less = self.build(attentions=[{'spa': 'cpa', 'cpa': 'spa'}[without]]).eval()
        less.load_state_dict(head.state_dict(), strict=False)
        (x,) = self.inputs((9, 7))
        for branch in (head.spa, head.cpa, less.spa, less.cpa):
            if hasattr(branch.attention, 'scale'):
                branch.attention.scale.fill_(0.5)
        assert not torch.equal(less(x), head(x))
        getattr(head, without).attention.scale.fill_(0)
        assert torch.equal(less(x), head(x))

    def test_defaults_are_the_papers(self):
        head = DPAHead(in_channels=12, num_classes=3)
        assert head.channels == 512
        spa = head.spa.attention
        assert (spa.pool_keys.sizes, spa.pool_values.sizes) == ([1, 4, 8, 10, 12], [1, 5, 7, 9, 13])
        assert spa.query is head.cpa.attention.query is None
        assert (head.cpa.attention.similarity, head.cpa.attention.maximum) == ('subtract', 'row')
        assert head.branch_fusion == 'concat'
        assert head.loss_weights == dict(fused=1, spa=1, cpa=1)
        for conv in (head.spa.conv_in, head.spa.conv_out, head.cpa.conv_in, head.cpa.conv_out):
            assert isinstance(conv.norm, torch.nn.BatchNorm2d)
            assert conv.conv.kernel_size == (3, 3)
        assert head.dropout.p == 0.1
        assert ' 23.6 M\n' in DPAHead.__doc__  # as test_method_pages.py counts

    def test_inference_computes_only_the_fused_output(self):
        head = self.build()
        (x,) = self.inputs((9, 7))
        assert list(head(x)) == ['fused', 'spa', 'cpa']
        for branch in (head.spa, head.cpa):
            branch.conv_seg = None  # nobody asks for it
        assert head.eval()(x).shape == (2, 3, 9, 7)

    def test_losses_are_those_of_the_three_classifiers_by_weight(self):
        weights = dict(fused=1, spa=0.5, cpa=2)
        head, batch = self.build(dropout_ratio=0, loss_weights=weights), labelled(2, (18, 14))
        label = torch.cat([sample.gt_sem_seg.data for sample in batch])
        logits = head(*self.inputs((9, 7)))
        losses = head.loss_by_feat(logits, batch)
        assert {*losses} == {f'{o}.{name}' for o in weights for name in ('loss_ce', 'acc_seg')}
        for output, values in logits.items():
            values = F.interpolate(values, size=label.shape[1:], mode='bilinear')
            pixels = F.cross_entropy(values, label, ignore_index=255, reduction='none')
            loss, accuracy = losses[f'{output}.loss_ce'], losses[f'{output}.acc_seg']
            torch.testing.assert_close(loss, weights[output] * pixels.mean())
            right = (values.argmax(1) == label)[label != 255].float().mean()
            torch.testing.assert_close(accuracy.squeeze(), 100 * right)

    def test_an_output_of_weight_0_has_no_classifier(self):
        head = self.build('one_loss')
        assert head.spa.conv_seg is head.cpa.conv_seg is None
        (x,) = self.inputs((9, 7))
        assert isinstance(head(x), torch.Tensor)
        assert {*head.loss(x, labelled(2, (18, 14)), train_cfg={})} == {'loss_ce', 'acc_seg'}
        assert list(self.build(loss_weights=dict(cpa=0))(x)) == ['fused', 'spa']

    def test_several_losses_and_hard_example_mining(self):
        head = self.build(
            loss_decode=[
                dict(type='CrossEntropyLoss', loss_name='loss_ce'),
                dict(type='LovaszLoss', loss_name='loss_lovasz', reduction='none'),
            ],
            sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10),
        )
        losses = head.loss(*self.inputs((9, 7)), labelled(2, (18, 14)), train_cfg={})
        assert {'fused.loss_ce', 'spa.loss_lovasz', 'cpa.loss_lovasz'} <= set(losses)

    def test_every_classifier_respects_out_channels(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # mmseg says which threshold it takes
            head = self.build(
                num_classes=2,
                out_channels=1,
                loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
            )
        (x,) = self.inputs((9, 7))
        assert {logits.shape[1] for logits in head(x).values()} == {1}
        losses = head.loss(x, labelled(2, (18, 14), num_classes=2), train_cfg={})
        assert losses['spa.loss_ce'].isfinite()

    def test_classifiers_start_small(self):
        head = self.build(in_channels=64, channels=64, num_classes=19)
        head.init_weights()
        for classifier in (head.conv_seg, head.spa.conv_seg, head.cpa.conv_seg):
            assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert not classifier.bias.any()
