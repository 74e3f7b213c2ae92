from __future__ import annotations

import argparse
import json
import re

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmseg.registry import METRICS, MODELS
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_coop.apis import build_runner, check_data, optimize_for_inference
from mmseg_coop.apis.launch import spell_out_topology
from mmseg_coop.config import forget_pretrained, load_config
from mmseg_coop.datasets.faults.walk import iter_datasets
from mmseg_coop.models._channels import image_channels, skip_pointwise
from tests.apis.test_folding import randomize
from tests.conftest import ROOT, shrink_networks

CONFIGS = sorted(ROOT.glob('configs/[!_]*/*.py'))
#: Configs by folder; a config that is lost or not picked up changes the count.
COUNTS = dict(cross_coop=29, deeplabv3plus=8, dpanet=13)
CITYSCAPES = ROOT / 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-99k_cityscapes-768x768.py'
LAYOUTS = dict(
    PascalVOCDataset='voc',
    CityscapesDataset='cityscapes',
    CamVidDataset='camvid',
    NYUv2Dataset='rgbd',
    MFNetDataset='rgbt',
)
ROOTS = dict(voc='VOCdevkit/VOC2012')
SIZE = 65


def test_all_configs_are_covered():
    counts = {}
    for config in CONFIGS:
        counts[config.parent.name] = counts.get(config.parent.name, 0) + 1
    assert counts == COUNTS


def cells():
    """The table of the cross_coop README: beginning of the name on VOC, options for Cityscapes."""
    readme = (ROOT / 'configs/cross_coop/README.md').read_text()
    return re.findall(r'^\| `(\S+)` \| `(.*)` \|$', readme.split('## Any other cell')[1], re.M)


def test_the_table_of_other_cells_has_every_row_with_the_backbones_of_the_paper():
    rows = ROOT.glob('configs/cross_coop/*-*_x65-r101-d16_*voc12aug*.py')
    names = {path.name.partition('-d16_')[0] for path in rows}
    # the method has its own config, head10x another schedule
    assert {name for name, _ in cells()} == names - {
        'cross-coop_x65-r101', 'cross-coop-head10x_x65-r101',
    }  # fmt: skip


def assert_made_on_cityscapes(config, options, expected):
    """The config with the options has the model of the other one, which is on VOC."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    cfg_options = parser.parse_args(['--cfg-options', *options.split()]).cfg_options
    cfg, expected = load_config(str(config), cfg_options=cfg_options), load_config(str(expected))
    expected.model.data_preprocessor.size = (768, 768)
    expected.model.decode_head.num_classes = 19
    for model in (cfg.model, expected.model):
        spell_out_topology(model)
    assert cfg.model == expected.model
    assert cfg.train_dataloader.dataset.type == 'CityscapesDataset'


def on_voc(name):
    """The config on VOC whose name begins so."""
    (config,) = ROOT.glob(f'configs/cross_coop/{name}-d16_*_voc12aug-513x513.py')
    return config


@pytest.mark.parametrize(('name', 'options'), cells())
def test_options_make_the_model_of_the_config_on_voc(name, options):
    assert_made_on_cityscapes(CITYSCAPES, options, on_voc(name))


@pytest.mark.parametrize('name', ['coop-one-way_r101-r101', 'coop-one-way_x65-x65'])
def test_a_copy_of_the_config_on_voc_makes_equal_backbones(name, tmp_path):
    copy = tmp_path / 'copy.py'
    base = './coop-one-way_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
    text = on_voc(name).read_text()
    assert base in text
    copy.write_text(text.replace(base, str(CITYSCAPES)))
    assert_made_on_cityscapes(copy, cells()[0][1], on_voc(name))


def test_other_backbones_on_cityscapes_are_a_config_of_a_few_lines(tmp_path):
    readme = (ROOT / 'configs/cross_coop/README.md').read_text()
    (block,) = re.findall(r'```python\n(_base_.*?)```', readme, re.DOTALL)
    path = tmp_path / 'other.py'
    path.write_text(block.replace('../_base_', str(ROOT / 'configs/_base_')))
    cfg = load_config(str(path))
    assert cfg.train_dataloader.dataset.type == 'CityscapesDataset'
    forget_pretrained(cfg.model)
    with torch.device('meta'):
        assert MODELS.build(cfg.model).num_classes == 19


@pytest.mark.parametrize('family', ['1xb6-600_camvid-180x240', '1xb8-3k_camvid-360x480'])
def test_the_distilled_network_differs_from_the_single_one_by_its_teachers(family):
    distilled, pair, single = (
        load_config(str(ROOT / f'configs/{name}_{family}.py')).model
        for name in (
            'cross_coop/distill_mnv2-from-mnv2-effl0-d16',
            'cross_coop/cross-coop_mnv2-effl0-d16',
            'deeplabv3plus/deeplabv3plus_mnv2-d16',
        )
    )
    assert distilled.test_cfg.output == 'light'
    assert distilled.decode_head.topology == dict(top=['bottom'], bottom=['top'])
    for part in ('backbone', 'decode_head'):
        networks = distilled[part].networks
        assert networks.pop('light') == single[part].networks.mnv2
        assert networks == pair[part].networks
    assert 'light' not in distilled.backbone.normalize
    assert single.backbone.normalize is None


@pytest.fixture(scope='session')
def data_root(mini_data):
    """Data root of a miniature dataset of a layout."""

    def find(layout, size=f'{SIZE}x{SIZE}'):
        out = mini_data(layout, train=2, val=1, size=size)
        nested = out / ROOTS.get(layout, '')
        return nested if nested.is_dir() else out

    return find


def shrink(value):
    """Make every crop, window and scale of a config small, in place."""
    if isinstance(value, dict):
        for key in value:
            if key in ('crop_size', 'size') and isinstance(value[key], (tuple, list)):
                value[key] = (SIZE, SIZE)
            elif key == 'stride' and isinstance(value[key], (tuple, list)):
                value[key] = (SIZE // 2, SIZE // 2)
            elif key == 'scale':
                value[key] = (4 * SIZE, SIZE)
            else:
                shrink(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            shrink(item)


#: Those that are run as wide as they are: in the slow tests, and at full size on a GPU.
WHOLE = (
    'cross-coop_x65-r101-d16_1xb6-88k',
    'dpanet_r101-d8_1xb8',
    'dpanet_s101',
    'dpanet-coop_x65',
)


@pytest.mark.parametrize(
    ('path', 'whole'),
    [
        *((path, False) for path in CONFIGS),
        *(
            pytest.param(path, True, marks=[pytest.mark.slow, pytest.mark.cuda])
            for path in CONFIGS
            if path.stem.startswith(WHOLE)
        ),
    ],
    ids=lambda value: getattr(value, 'stem', ('tiny', 'whole')[value is True]),
)
def test_config_trains_validates_and_tests(path, whole, device, data_root, tmp_path):
    full_size = device.type == 'cuda'
    train_validate_and_test(path, data_root, tmp_path, whole=whole, full_size=full_size)


def test_validation_on_whole_images_is_chosen_by_one_line(data_root, tmp_path):
    text = ROOT / 'configs/deeplabv3plus/deeplabv3plus_r101-d16_1xb6-88k_voc12aug-513x513.py'
    text = text.read_text()
    old, new = 'pascal_voc12_aug_513x513.py', 'pascal_voc12_aug_513x513_whole.py'
    assert text.count(old) == 1
    path = tmp_path / 'config.py'
    path.write_text(text.replace(old, new).replace('../_base_', str(ROOT / 'configs/_base_')))
    cfg = train_validate_and_test(path, data_root, tmp_path / 'work')
    assert 'EvalCenterCrop' not in [step['type'] for step in cfg.val_dataloader.dataset.pipeline]


def own_config(tmp_path):
    """The README's config for a project of one's own, with a stock schedule."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    path = tmp_path / 'own.py'
    path.write_text(next(block for block in blocks if 'CrossCoopEncoderDecoder' in block))
    cfg = Config.fromfile(path)
    assert METRICS.build(cfg.val_evaluator).metrics == ['mIoU']
    cfg.optim_wrapper = Config.fromfile(
        ROOT / 'configs/_base_/schedules/schedule_88k.py'
    ).optim_wrapper
    return cfg


@pytest.mark.parametrize(
    'path', [*CONFIGS, ROOT / 'docs/annotated_config.py', None], ids=lambda p: p and p.stem
)
def test_maps_fit_and_backbones_have_their_rate_and_all_else_the_heads(path, tmp_path):
    cfg = Config.fromfile(path) if path else own_config(tmp_path)
    forget_pretrained(cfg.model)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
        image = torch.empty(1, image_channels(model), SIZE, SIZE)
    skip_pointwise(model.eval())(image, mode='tensor')
    # of a plain dict, as conftest.py says
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper.to_dict()).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates, rate, decay = (
        {},
        cfg.optim_wrapper.optimizer.lr,
        cfg.optim_wrapper.optimizer.weight_decay,
    )
    for group in optimizer.param_groups:
        assert group['weight_decay'] == decay
        for name in (names.pop(id(parameter)) for parameter in group['params']):
            part = 'backbones' if name.startswith('backbone.') else 'all else'
            rates.setdefault(part, set()).add(group['lr'] / rate)
            assert part == 'backbones' or 'backbone' not in name  # what custom_keys would match
    assert not names
    backbones, all_else = 0.1, 1.0
    if path and re.search('head10x|dpa.*(cityscapes|voc)', path.stem):
        backbones, all_else = 1.0, 10.0
    elif path and 'mini' in path.stem:  # nothing of it is pretrained
        backbones = 1.0
    expected = {'backbones': {backbones}, 'all else': {all_else}}
    assert {part: {round(r, 6) for r in found} for part, found in rates.items()} == expected


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_ignored_pixels_are_left_out_of_the_mean_of_the_loss(path):
    loss = Config.fromfile(path).model.decode_head.loss_decode
    logits, label = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 4, 4))
    label[:, :3] = 255
    expected = functional.cross_entropy(logits, label, ignore_index=255)
    found = MODELS.build(loss)(logits, label, ignore_index=255) / loss.get('loss_weight', 1)
    torch.testing.assert_close(found, expected)


def train_validate_and_test(path, data_root, tmp_path, *, whole=False, full_size=False):
    """Run a config, at reduced size unless told otherwise, with all checks, and return it."""
    cfg = load_config(str(path))
    forget_pretrained(cfg.model)
    if not whole:
        shrink_networks(cfg.model)
    if not full_size:
        for key in ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader'):
            shrink(cfg[key])
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        for dataset in iter_datasets(loader.dataset):
            size = ['513x513'] if full_size else []
            dataset.data_root = str(data_root(LAYOUTS[dataset.type], *size))
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = path.stem
    cfg.log_level, cfg.launcher = 'WARNING', 'none'
    check_data(cfg)

    runner = build_runner(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items() if 'conv_seg' in k}
    runner.train()
    after = runner.model.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())
    (log,) = tmp_path.glob('*/*.log')
    assert not re.search('custom_keys|param_scheduler', log.read_text())  # no false alarm
    metrics = runner.test()
    outputs = getattr(runner.model, 'output_names', ())
    assert 0 <= metrics['mIoU'] <= 100
    if outputs:
        assert {f'{name}/mIoU' for name in outputs} <= set(metrics)
        assert metrics['mIoU'] == metrics[f'{runner.model.chosen_output}/mIoU']
    logged = json.loads(next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()[0])
    networks = [name for name in outputs if name != 'ensemble']
    for network in networks or ['']:
        assert any(key.startswith(f'decode.{network}') and 'loss' in key for key in logged)
    # Wide networks amplify the rounding by any factor after a step from weights not pretrained.
    assert_optimized_is_exact(runner.model.eval(), torch.double if whole else torch.float)
    return cfg


def assert_optimized_is_exact(model, dtype):
    """Folding batch norms and another layout of memory change nothing but the rounding."""
    randomize(model.to(dtype))
    device = next(model.parameters()).device
    image = torch.randn(1, image_channels(model), SIZE, SIZE, dtype=dtype, device=device)
    meta = dict(img_shape=(SIZE, SIZE))
    with torch.no_grad():
        expected = model.encode_decode(image, [meta])
        optimize_for_inference(model)
        found = model.encode_decode(image, [meta])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    left = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]
    assert all(name.startswith('auxiliary_head') for name in left)
