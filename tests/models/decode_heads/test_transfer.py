"""Networks that learn from the outputs of others."""

from __future__ import annotations

import re

import pytest
import torch
from mmseg.registry import MODELS
from torch.nn import functional

from mmseg_coop.models.decode_heads.transfer import Transfer
from tests.conftest import labelled

#: A cheap network taught by a pair, none of which exchange feature maps.
TAUGHT = dict(top='resnet', bottom='mobilenet', light='mobilenet')
FCN = dict(type='FCNHead', in_channels=4, num_convs=1, kernel_size=1, dropout_ratio=0.0)


def logits_of(*names, channels=3, size=(4, 5)):
    return {name: torch.randn(2, channels, *size, requires_grad=True) for name in names}


def labels_of(size=(4, 5)):
    labels = torch.randint(0, 2, (2, 1, *size))
    labels[:, :, :2, 1:] = 255
    return labels


def loss_of(transfer, logits, labels):
    return transfer(logits, labels, ignore_index=255, align_corners=False)


@pytest.mark.parametrize('teacher', ['top', 'ensemble'])
def test_value_is_the_divergence_on_the_pixels_that_count(teacher):
    logits, labels = logits_of('top', 'light', 'bottom'), labels_of()
    transfer = Transfer(teacher=teacher, student='light', loss_weight=0.5, temperature=3.0)
    wanted = logits['top'] if teacher == 'top' else (logits['top'] + logits['bottom']) / 2
    one_by_one = functional.kl_div(
        (logits['light'] / 3).log_softmax(1), (wanted / 3).softmax(1), reduction='none'
    )
    expected = 0.5 * 9 * one_by_one.sum(1)[labels.squeeze(1) != 255].mean()
    torch.testing.assert_close(loss_of(transfer, logits, labels), expected)


def test_a_single_output_has_the_probabilities_of_two_classes():
    logits, labels = logits_of('top', 'light', channels=1), labels_of()
    loss = loss_of(Transfer(teacher='top', student='light', temperature=2.0), logits, labels)
    student, teacher = ((logits[name] / 2).sigmoid() for name in ('light', 'top'))
    bernoulli = sum(t * (t / s).log() for t, s in ((teacher, student), (1 - teacher, 1 - student)))
    torch.testing.assert_close(loss, 4 * bernoulli[labels != 255].mean())


def test_student_alone_learns_and_from_no_ignored_pixel():
    logits, labels = logits_of('top', 'light', 'bottom'), labels_of()
    loss_of(Transfer(teacher='ensemble', student='light'), logits, labels).backward()
    assert logits['top'].grad is None
    assert logits['bottom'].grad is None
    learnt = logits['light'].grad.abs().sum(dim=1, keepdim=True) > 0
    assert torch.equal(learnt, labels != 255)
    empty = loss_of(Transfer(teacher='top', student='light'), logits, torch.full_like(labels, 255))
    assert empty == 0


def test_the_teacher_comes_to_the_size_of_the_student_and_both_to_float32():
    logits, labels = logits_of('light', size=(8, 10)), labels_of((32, 40))
    coarse = torch.randn(2, 3, 4, 5)
    transfer = Transfer(teacher='top', student='light')
    with torch.autocast('cpu', torch.bfloat16):
        half = {name: x.bfloat16() for name, x in dict(logits, top=coarse).items()}
        loss = loss_of(transfer, half, labels)
    assert loss.dtype == torch.float32
    fine = functional.interpolate(half['top'].float(), scale_factor=2, mode='bilinear')
    middles = labels[:, :, 2::4, 2::4]
    expected = loss_of(transfer, dict(light=half['light'].float(), top=fine), middles)
    torch.testing.assert_close(loss, expected)


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(0)
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, logged = model.parse_losses(losses)
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}, logged


def test_only_students_get_another_gradient(coop_model_cfg, train_batch):
    transfer = [dict(teacher=name, student='light') for name in ('ensemble', 'bottom')]
    plain, taught = (
        MODELS.build(coop_model_cfg(TAUGHT, topology='none', dropout_ratio=0.0, transfer=given))
        for given in (None, transfer)
    )
    taught.load_state_dict(plain.state_dict())
    batch = train_batch()
    alone, without = gradients(plain, batch)
    found, logged = gradients(taught, batch)
    assert {*logged} - {*without} == {
        'decode.light.loss_transfer_ensemble',
        'decode.light.loss_transfer_bottom',
    }
    changed = {name for name in alone if not torch.equal(alone[name], found[name])}
    assert changed
    assert changed == {name for name in alone if '.light.' in name and alone[name].any()}


def test_a_network_without_labels_learns_what_its_teacher_says():
    blind = dict(type='CrossEntropyLoss', loss_weight=0.0)
    head = MODELS.build(
        dict(
            type='CoopHead',
            networks=dict(top=FCN, light=dict(FCN, loss_decode=blind)),
            channels=4,
            num_classes=3,
            topology='none',
            transfer=[dict(teacher='top', student='light')],
        )
    )
    levels, samples = [torch.randn(2, 4, 8, 8)], labelled(2, (8, 8))
    for sample, level in zip(samples, *levels, strict=True):
        sample.gt_sem_seg.data[0, 1:] = 2 * (level[0, 1:] > 0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        losses = head.loss(dict(top=levels, light=levels), samples)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
    assert losses['top.acc_seg'] > 95
    assert losses['light.acc_seg'] > 95


def test_of_several_outputs_the_one_that_predicts_teaches():
    head = MODELS.build(
        dict(
            type='CoopHead',
            networks=dict(
                top=FCN,
                bottom=dict(
                    type='DPAHead',
                    in_channels=6,
                    key_sizes=(1, 2),
                    value_sizes=(1, 2),
                    dropout_ratio=0.0,
                ),
            ),
            channels=4,
            num_classes=3,
            topology='none',
            transfer=[
                dict(teacher='top', student='bottom'),
                dict(teacher='bottom', student='top'),
            ],
        )
    )
    inputs = dict(top=[torch.randn(2, 4, 6, 6)], bottom=[torch.randn(2, 6, 3, 3)])
    samples = labelled(2, (12, 12))
    losses = head.loss(inputs, samples)
    logits = head(inputs)
    labels = torch.stack([sample.gt_sem_seg.data for sample in samples])
    for teacher, student in (('top', 'bottom'), ('bottom', 'top')):
        transfer = Transfer(teacher=teacher, student=student)
        predicted = dict(top=logits['top'], bottom=logits['bottom']['fused'])
        expected = loss_of(transfer, predicted, labels)
        torch.testing.assert_close(losses[f'{student}.loss_transfer_{teacher}'], expected)


@pytest.mark.parametrize(
    ('transfer', 'message'),
    [
        (dict(student='top', teacher='top'), "transfer.0: the network 'top' is its own teacher"),
        (
            dict(student='light', teacher='top'),
            "transfer.0: student='light' is unknown; choose",
        ),
        (dict(student='top', teacher='botom'), "choose one of ('top', 'bottom', 'ensemble')"),
        (dict(student='ensemble', teacher='top'), "student='ensemble' is unknown"),
        (dict(student='top', teacher='bottom', loss_weight=0), 'loss_weight=0 is not positive'),
        (dict(student='top', teacher='bottom', temperature=float('inf')), 'temperature=inf is not'),
        (
            [dict(student='top', teacher='bottom'), dict(teacher='bottom', student='top')],
            "transfer.1: 'bottom' teaches 'top' already",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(transfer, message, coop_model_cfg):
    transfer = [transfer] if isinstance(transfer, dict) else transfer
    with pytest.raises(ValueError, match=re.escape(message)):
        MODELS.build(coop_model_cfg(transfer=transfer))


def test_a_network_alone_has_no_teacher(coop_model_cfg):
    cfg = coop_model_cfg(dict(top='resnet'), transfer=[dict(student='top', teacher='ensemble')])
    with pytest.raises(ValueError, match=re.escape("choose one of ('top',)")):
        MODELS.build(cfg)
