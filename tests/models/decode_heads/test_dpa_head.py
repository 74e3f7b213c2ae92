from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_coop.models.cooperation import Cooperation, run_in_step
from mmseg_coop.models.decode_heads.dpa_head import DPAHead

FEW = dict(key_sizes=(3, 4), value_sizes=(5,))
VARIANTS = [
    dict(),
    dict(branch_fusion='sum'),
    dict(convolutions='after'),
    dict(convolutions='none'),
    dict(convolutions='none', branch_fusion='sum', maximum='column', channel_qkv='conv'),
    dict(qkv='conv', pooling='max', scaled=True, similarity='square'),
    dict(loss_weights=dict(spa=0, cpa=0)),
    dict(dropout_ratio=0, norm_cfg=None),
]


def build_head(**kwargs):
    head = DPAHead(**{**dict(in_channels=12, channels=8, num_classes=3), **FEW, **kwargs})
    head.init_weights()
    for branch in (head.spa, head.cpa):
        torch.nn.init.constant_(branch.attention.scale, 0.5)
    return head


def features(size=(9, 7), batch=2):
    return [torch.rand(batch, 5, 20, 20), torch.rand(batch, 12, *size)]


def samples(size=(18, 14), batch=2, num_classes=3):
    made = []
    for _ in range(batch):
        label = torch.randint(0, num_classes, (1, *size))
        label[:, 0] = 255
        sample = SegDataSample(metainfo=dict(img_shape=size, pad_shape=size))
        sample.gt_sem_seg = PixelData(data=label)
        made.append(sample)
    return made


@pytest.mark.parametrize('options', VARIANTS)
@pytest.mark.parametrize('size', [(9, 7), (2, 3)])
def test_trains_every_parameter_and_predicts(options, size):
    head = build_head(**options)
    losses = head.loss(features(size), samples(), train_cfg={})
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    metas = [sample.metainfo for sample in samples()]
    for mode in (True, False):
        logits = head.train(mode).predict(features(size), metas, test_cfg={})
        assert logits.shape == (2, 3, 18, 14)


@pytest.mark.parametrize('fusion', ['concat', 'sum'])
@pytest.mark.parametrize('convolutions', ['both', 'after', 'none'])
def test_joins_two_branches(fusion, convolutions):
    head = build_head(branch_fusion=fusion, convolutions=convolutions).eval()
    x = features()
    outputs = []
    for branch in (head.spa, head.cpa):
        feature = branch.conv_in(x[-1]) if convolutions == 'both' else x[-1]
        feature = branch.attention(feature)
        outputs.append(feature if convolutions == 'none' else branch.conv_out(feature))
    joined = torch.cat(outputs, dim=1) if fusion == 'concat' else outputs[0] + outputs[1]
    torch.testing.assert_close(head(x), F.conv2d(joined, head.conv_seg.weight, head.conv_seg.bias))


def test_widths():
    head = build_head()
    assert head.spa.attention.in_channels == head.cpa.attention.in_channels == 8
    assert head.conv_seg.in_channels == 16
    assert build_head(branch_fusion='sum').conv_seg.in_channels == 8
    own = build_head(convolutions='after')
    assert own.spa.attention.in_channels == own.cpa.attention.in_channels == 12
    assert own.spa.conv_in is own.cpa.conv_in is None
    assert own.spa.conv_out.out_channels == 8
    bare = build_head(convolutions='none')
    assert bare.spa.attention.in_channels == bare.cpa.attention.in_channels == bare.channels == 12
    assert bare.conv_seg.in_channels == 24
    assert bare.spa.conv_seg.in_channels == bare.cpa.conv_seg.in_channels == 12
    assert inspect.signature(DPAHead).parameters['channels'].default == 512


def parameters_beside_classifiers(**options):
    with torch.device('meta'):
        head = DPAHead(in_channels=2048, num_classes=19, **options)
    named = head.named_parameters()
    return sum(p.numel() for name, p in named if 'conv_seg' not in name)


def test_parameters_the_modules_add():
    """None but lambda and mu where X is fed straight into both attentions (section 3.1)."""
    assert parameters_beside_classifiers(convolutions='none') == 2
    first, second = 2 * (2048 * 512 * 9 + 1024), 2 * (512 * 512 * 9 + 1024)
    assert parameters_beside_classifiers() == first + second + 2 == 23_597_058
    assert f'{(first + second) / 1e6:.1f} M' == '23.6 M'
    assert ' 23.6 M\n' in DPAHead.__doc__


def test_attentions_get_their_options():
    head = build_head(
        qkv='conv', query_channels=8, similarity='square', maximum='column', channel_qkv='conv'
    )
    spa, cpa = head.spa.attention, head.cpa.attention
    assert [conv.out_channels for conv in (spa.query, spa.key, spa.value)] == [8, 8, 8]
    assert [conv.out_channels for conv in (cpa.query, cpa.key, cpa.value)] == [8, 8, 8]
    assert (cpa.similarity, cpa.maximum) == ('square', 'column')


def test_defaults_are_the_papers():
    head = DPAHead(in_channels=12, channels=8, num_classes=3)
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


def test_inference_computes_only_the_fused_output():
    head = build_head()
    ran = []
    for name in ('spa', 'cpa'):
        getattr(head, name).conv_seg.register_forward_hook(lambda *_, name=name: ran.append(name))
    training = head(features())
    assert list(training) == ['fused', 'spa', 'cpa']
    assert ran == ['spa', 'cpa']
    inference = head.eval()(features())
    assert inference.shape == (2, 3, 9, 7)
    assert ran == ['spa', 'cpa']


def test_losses_are_weighted():
    torch.manual_seed(1)
    head, batch, x = build_head(dropout_ratio=0), samples(), features()
    equal = head.loss(x, batch, train_cfg={})
    assert sorted(equal) == sorted(
        f'{output}.{name}' for output in ('fused', 'spa', 'cpa') for name in ('loss_ce', 'acc_seg')
    )
    weighted = build_head(dropout_ratio=0, loss_weights=dict(spa=0.5, cpa=2))
    weighted.load_state_dict(head.state_dict())
    losses = weighted.loss(x, batch, train_cfg={})
    for output, weight in dict(fused=1, spa=0.5, cpa=2).items():
        torch.testing.assert_close(losses[f'{output}.loss_ce'], weight * equal[f'{output}.loss_ce'])
        torch.testing.assert_close(losses[f'{output}.acc_seg'], equal[f'{output}.acc_seg'])


def test_the_losses_are_those_of_the_three_classifiers():
    head, batch, x = build_head(dropout_ratio=0), samples(), features()
    label = torch.stack([sample.gt_sem_seg.data[0] for sample in batch])
    logits = head(x)
    losses = head.loss_by_feat(logits, batch)
    for output, values in logits.items():
        values = F.interpolate(values, size=label.shape[1:], mode='bilinear')
        pixels = F.cross_entropy(values, label, ignore_index=255, reduction='none')
        torch.testing.assert_close(losses[f'{output}.loss_ce'], pixels.mean())


def test_without_branch_losses_the_head_is_plain():
    head = build_head(loss_weights=dict(spa=0, cpa=0))
    assert head.spa.conv_seg is head.cpa.conv_seg is None
    assert isinstance(head(features()), torch.Tensor)
    assert set(head.loss(features(), samples(), train_cfg={})) == {'loss_ce', 'acc_seg'}
    one = build_head(loss_weights=dict(cpa=0))
    assert one.cpa.conv_seg is None
    assert list(one(features())) == ['fused', 'spa']


def test_several_losses_and_hard_example_mining():
    head = build_head(
        loss_decode=[
            dict(type='CrossEntropyLoss', loss_name='loss_ce'),
            dict(type='LovaszLoss', loss_name='loss_lovasz', reduction='none'),
        ],
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10),
    )
    losses = head.loss(features(), samples(), train_cfg={})
    assert {'fused.loss_ce', 'spa.loss_lovasz', 'cpa.loss_lovasz'} <= set(losses)


def test_every_classifier_respects_out_channels():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmseg says which threshold it takes
        head = build_head(
            num_classes=2,
            out_channels=1,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        )
    for logits in head(features()).values():
        assert logits.shape[1] == 1
    assert head.loss(features(), samples(num_classes=2), train_cfg={})['spa.loss_ce'].isfinite()


def test_classifiers_start_small():
    head = build_head(in_channels=64, channels=64, num_classes=19)
    for classifier in (head.conv_seg, head.spa.conv_seg, head.cpa.conv_seg):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not classifier.bias.any()


@pytest.mark.parametrize('options', VARIANTS)
def test_steps_offer_the_declared_sites(options):
    head = build_head(**options).eval()
    x = features()
    steps, sent, offered = head.steps(x), None, {}
    while True:
        try:
            site, sent = steps.send(sent)
        except StopIteration as finished:
            logits = finished.value
            break
        offered.setdefault(site, []).append(sent.shape[1])
    assert {site: tuple(channels) for site, channels in offered.items()} == head.site_channels
    torch.testing.assert_close(logits, head(x))
    torch.testing.assert_close(run_in_step(dict(head=head.steps(x)))['head'], logits)


@pytest.mark.parametrize('index', range(7))
def test_goes_on_with_what_it_is_sent(index):
    head = build_head().eval()
    x = features()
    steps, sent = head.steps(x), None
    for step in range(7):
        _, sent = steps.send(sent)
        if step == index:
            sent = sent + 1
    with pytest.raises(StopIteration) as finished:
        steps.send(sent)
    assert not torch.allclose(finished.value.value, head(x))


def test_heads_cooperate():
    heads = dict(top=build_head().eval(), bottom=build_head(convolutions='both').eval())
    cooperation = Cooperation(
        site_channels={name: head.site_channels for name, head in heads.items()},
        connections=['attention_output'],
    )
    x = dict(top=features(), bottom=features())
    results = cooperation({name: head.steps(x[name]) for name, head in heads.items()})
    outputs = {'spa': 0, 'cpa': 0}
    for name, head in heads.items():
        for branch in outputs:
            layers = getattr(head, branch)
            outputs[branch] = outputs[branch] + layers.conv_out(
                layers.attention(layers.conv_in(x[name][-1]))
            )
    joined = torch.cat(list(outputs.values()), dim=1)
    for name, head in heads.items():
        torch.testing.assert_close(results[name], head.conv_seg(joined))


def test_save_and_load(tmp_path):
    head = build_head().eval()
    torch.save(head.state_dict(), tmp_path / 'head.pth')
    other = build_head().eval()
    other.load_state_dict(torch.load(tmp_path / 'head.pth'))
    x = features()
    torch.testing.assert_close(other(x), head(x), rtol=0, atol=0)


def test_works_in_a_segmentor_with_an_auxiliary_head(train_batch):
    model = MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
            backbone=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=8,
                base_channels=8,
                strides=(1, 2, 1, 1),
                dilations=(1, 1, 2, 4),
            ),
            decode_head=dict(
                type='DPAHead',
                in_channels=64,
                channels=8,
                num_classes=4,
                loss_weights=dict(spa=0, cpa=0),
            ),
            auxiliary_head=dict(
                type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=4, num_convs=1
            ),
            test_cfg=dict(mode='whole'),
        )
    )
    data = model.data_preprocessor(train_batch(), training=True)
    losses = model(**data, mode='loss')
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    predicted = model.eval()(**data, mode='predict')
    assert predicted[0].pred_sem_seg.shape == (64, 64)
    assert model(data['inputs'], mode='tensor').shape == (2, 4, 8, 8)


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.7'),
    reason='torch.compile follows no generators before torch 2.7',
)
def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    head = build_head().eval()
    x = features()
    compiled = torch.compile(head, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), head(x))


class Export(torch.nn.Module):
    """The exporters take tensors, the head takes a pyramid."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head([x])


@pytest.mark.parametrize('dynamo', [False, True], ids=['tracing', 'dynamo'])
def test_exports_with_dynamic_size(dynamo, tmp_path):
    for package in ('onnx', 'onnxruntime', *(['onnxscript'] if dynamo else [])):
        pytest.importorskip(package, reason=f'needed to export to ONNX or to run it: {package}')
    import onnxruntime

    has_dynamo = 'dynamo' in inspect.signature(torch.onnx.export).parameters
    if dynamo and not has_dynamo:
        pytest.skip('torch.onnx.export of this torch has no dynamo=True')
    model = Export(build_head(qkv='conv')).eval()
    arguments = dict(dynamo=dynamo) if has_dynamo else {}
    if dynamo:
        height, width = (torch.export.Dim(side, min=1, max=4096) for side in ('height', 'width'))
        arguments.update(dynamic_shapes=({2: height, 3: width},), verbose=False)
    else:
        arguments.update(input_names=['x'], dynamic_axes=dict(x={2: 'height', 3: 'width'}))
    path = str(tmp_path / 'head.onnx')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the old exporter says that it is old
        torch.onnx.export(model, (torch.rand(1, 12, 9, 7),), path, **arguments)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for size in [(9, 7), (14, 22)]:
        x = torch.rand(1, 12, *size)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(x).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(convolutions='all'), r"convolutions='all' .*'both', 'after', 'none'"),
        (dict(branch_fusion='max'), r"branch_fusion='max' .*'concat', 'sum'"),
        (dict(similarity='dot'), r"similarity='dot' is unknown"),
        (dict(qkv='linear'), r"qkv='linear' is unknown"),
        (dict(key_sizes=()), 'holds no pool sizes'),
        (dict(loss_weights=dict(pam=1)), r"unknown output 'pam'; .*'fused', 'spa', 'cpa'"),
        (dict(loss_weights=dict(spa=-1)), 'cannot train the head; give numbers from 0 on'),
        (dict(loss_weights=dict(fused=0)), "more than 0 for 'fused'"),
        (dict(input_transform='resize_concat', in_index=[0, 1]), 'DPAHead takes one'),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_head(**arguments)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match=r'built for 10 channels .* returns 12'):
        build_head(in_channels=10)(features())
