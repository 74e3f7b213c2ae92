"""The documentation builds without a warning, leaves nothing out, and what it shows works."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import types
import zlib
from pathlib import Path

import mmseg
import mmseg.registry
import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_randomness
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import Registry
from mmseg.registry import DATASETS, MODELS
from PIL import Image

import mmseg_coop
from mmseg_coop.analysis import study_queue
from mmseg_coop.apis import check_data
from mmseg_coop.config import forget_pretrained
from tests.conftest import ROOT, Here, shrink_networks

PAGES = [
    ROOT / name
    for pattern in ('[A-Z]*.md', 'configs/*/README.md', 'docs/*.md', 'docs/[!_]*/*.md')
    for name in sorted(ROOT.glob(pattern))
]
GUIDES = [page for page in PAGES if page.parent.name != 'methods']


def name_of(page):
    return page.relative_to(ROOT).as_posix()


by_page = pytest.mark.parametrize('page', PAGES, ids=name_of)
MINI = 'configs/cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
#: Options in the text that belong to other programs.
FOREIGN = {'--kill-on-bad-exit', '--time', '--no-deps'}
#: Folders of the project in the text that a command makes.
MADE = ('demo/output', 'docs/_build')


def blocks(page, *languages):
    """Code blocks of a page in one of the languages."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def file_named_in(block):
    """The file for which a block is meant, which its first line may name."""
    match = re.match(r'# (my_[\w/-]+\.(?:py|yml))\n', block)
    return match and match[1]


@pytest.fixture(scope='module')
def help_of(run_tool):
    return functools.cache(lambda path: run_tool(path, '--help'))


# What Sphinx makes of it


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """What the strict build says, and the folder it writes."""
    for package in ('sphinx', 'myst_parser', 'furo'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed (pip install -r requirements/docs.txt)')
    from sphinx.cmd.build import main as sphinx

    out, said = tmp_path_factory.mktemp('html'), io.StringIO()
    options = ['-W', '--keep-going', '-n', '-q', '-b', 'html', '-d', str(out / 'doctrees')]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.syspath_prepend(str(ROOT))  # as conf.py does, and would leave
        patch.setattr(cache_randomness, '__get__', cache_randomness.__get__)
        code = sphinx([*options, str(ROOT / 'docs'), str(out / 'html')])
    return code, said.getvalue(), out / 'html'


def test_strict_build_has_no_warning(built):
    code, said, html = built
    assert code == 0, said
    assert (html / 'index.html').is_file()


def documented(html):
    """Objects that the reference documents."""
    content = (html / 'objects.inv').read_bytes().split(b'\n', 4)[4]
    entries = [line.split() for line in zlib.decompress(content).decode().splitlines()]
    kinds = ('py:class', 'py:function', 'py:data', 'py:exception')
    return [pkgutil.resolve_name(name) for name, kind, *_ in entries if kind in kinds]


def exported():
    """Public objects of the package by their names: what packages export and registries hold."""
    names = ['mmseg_coop']
    names += [info.name for info in pkgutil.walk_packages(mmseg_coop.__path__, 'mmseg_coop.')]
    found = {}
    for module in map(importlib.import_module, names):
        for name in getattr(module, '__all__', ()):
            found[f'{module.__name__}.{name}'] = getattr(module, name)
    for name, registry in vars(mmseg.registry).items():
        if isinstance(registry, Registry):
            for key, value in registry.module_dict.items():
                if value.__module__.startswith('mmseg_coop.'):
                    found[f'{name} {key}'] = value
    return {key: value for key, value in found.items() if not isinstance(value, types.ModuleType)}


def test_reference_holds_every_exported_name_and_registered_component(built):
    ids = set(map(id, documented(built[2])))
    public = exported()
    assert {'mmseg_coop.models.GatedFusion', 'HOOKS RecordIoUHook'} <= set(public)
    missing = sorted(name for name, value in public.items() if id(value) not in ids)
    assert not missing, f'add them to docs/api: {missing}'


# The examples


@pytest.fixture(scope='module')
def project(tmp_path_factory, mini_data, trained):
    """A folder as the first steps leave it, with a short training, and the files of the pages."""
    folder = tmp_path_factory.mktemp('project')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for name in ('configs', 'demo', 'tools'):
            (folder / name).symlink_to(ROOT / name)
        for name, classes in (('mini_camvid', None), ('own', 3), ('masks', 2)):
            shutil.copytree(mini_data(size='128x128'), f'data/{name}')
            for path in Path('data', name).rglob('*.png') if classes else ():
                Image.fromarray(np.array(Image.open(path)) % classes).save(path)
        shutil.copytree(mini_data('rgbd', size='128x128'), 'data/mini_rgbd')
        shutil.copytree(trained[0], 'work_dirs/mini')
        shutil.copy('work_dirs/mini/iter_4.pth', 'work_dirs/mini/iter_200.pth')
        for page in PAGES:
            for block in blocks(page, 'python', 'yaml'):
                if file_named_in(block):
                    file = Path(file_named_in(block))
                    file.parent.mkdir(exist_ok=True)
                    file.write_text(block)
        yield folder


@pytest.fixture(scope='module')
def exported_model(project, run_tool):
    """The files that the commands for the export write."""
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package, reason=f'{package} is what the export needs')
    options = ['--program'] if hasattr(torch.export, 'save') else []
    checkpoint = 'work_dirs/mini/iter_200.pth'
    run_tool('tools/deployment/export_onnx.py', MINI, checkpoint, '--out', 'model.onnx', *options)


@pytest.mark.parametrize('page', GUIDES, ids=name_of)  # the pages of the methods quote the source
def test_python_blocks_run(page, project, request):
    namespace = {}
    for number, block in enumerate(blocks(page, 'python')):
        if file_named_in(block):
            continue
        if 'model.onnx' in block:
            request.getfixturevalue('exported_model')
        if 'model.pt2' in block and not Path('model.pt2').exists():
            continue  # torch.export of an older torch
        exec(compile(block, f'{page.name}, block {number}', 'exec'), namespace)


def test_masks_as_drawing_programs_save_them_become_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data/masks/drawn/train').mkdir(parents=True)
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save('data/masks/drawn/train/a.png')
    (block,) = [
        block
        for block in blocks(ROOT / 'docs/binary_segmentation.md', 'python')
        if not file_named_in(block)
    ]
    exec(block, {})
    label = np.array(Image.open('data/masks/ann_dir/train/a.png'))
    assert label.tolist() == [[0, 1], [1, 0]]
    assert label.dtype == np.uint8


def config_files():
    files = [file_named_in(block) for page in PAGES for block in blocks(page, 'python')]
    return [file for file in files if file and file.startswith('my_configs/')]


@pytest.mark.parametrize('file', config_files())
def test_configs_of_the_pages_train_and_predict(file, project):
    cfg = Config.fromfile(file)
    forget_pretrained(cfg.model)
    check_data(cfg)
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform['type'] == 'RandomCrop':
            transform.crop_size = cfg.model.data_preprocessor.size = (64, 64)
    model = MODELS.build(cfg.model)
    train_set = DATASETS.build(cfg.train_dataloader.dataset)
    batch = model.data_preprocessor(pseudo_collate([train_set[0], train_set[1]]), True)
    losses = model(**batch, mode='loss')
    names = model.decode_head.network_names
    for name in names:
        assert (f'decode.{name}.loss_ce' in losses) == (name not in model.frozen)
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    frozen = {id(each) for part in model.parts_of(model.frozen) for each in part.parameters()}
    for name, parameter in model.decode_head.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    test_set = DATASETS.build(cfg.test_dataloader.dataset)
    (sample,) = model.eval().test_step(pseudo_collate([test_set[0]]))
    assert set(sample.pred_outputs.keys()) == {*names, 'ensemble'}


#: Marks of commands that cannot run as they stand: placeholders, data that are not here, installs.
NOT_HERE = re.compile(
    r'(?<![$\w])(CONFIG|CHECKPOINT|PARTITION)\b|…|NNODES|/data/|VOCdevkit|data/cityscapes|SegNet|'
    r'\$S/|study camvid|pip install|pip download|venv|^(RGBD_)?(CONFIG|CHECKPOINT)='
)
#: A launcher of several processes, which is started once a page, with two of them.
LAUNCH = r'tools/dist_(\w+)\.sh (\D+) \d+'
SHORT = """
_base_ = '../{}'
short = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, **short)
val_dataloader = test_dataloader = short
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'page',
    # What README and index have is run by the demo and other tests.
    [page for page in GUIDES if page.parent.name == 'docs' and page.name != 'index.md'],
    ids=name_of,
)
def test_commands_run(page, project, run_tool, tool, monkeypatch):
    # what a study starts runs here as well
    monkeypatch.setattr(study_queue, 'spawn', lambda command, _, log: Here(tool, command, log))
    for file, base in (('short', MINI), ('short_rgbd', MINI.replace('camvid', 'nyuv2'))):
        Path(f'my_configs/{file}.py').write_text(SHORT.format(base))
    shutil.copy('work_dirs/mini/iter_200.pth', 'work_dirs/mini/iter_100.pth')
    for name, value in (
        ('CONFIG', 'my_configs/short.py'),
        ('CHECKPOINT', 'work_dirs/mini/iter_200.pth'),
        ('RGBD_CONFIG', 'my_configs/short_rgbd.py'),
        ('RGBD_CHECKPOINT', 'work_dirs/mini_rgbd/iter_2.pth'),
        ('OMP_NUM_THREADS', '1'),
        ('PATH', f'{Path(sys.executable).parent}:{os.environ["PATH"]}'),
    ):
        monkeypatch.setenv(name, value)
    launched = False
    for line in '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines():
        if not line or NOT_HERE.search(line):
            continue
        if launched:
            line = re.sub(LAUNCH, r'python tools/\1.py \2', line)
        elif re.match(LAUNCH, line):
            launched, line = True, re.sub(LAUNCH, r'tools/dist_\1.sh \2 2', line)
        if re.search(r'tools/train\.py my_configs|mmseg-coop train', line):
            line += ' --cfg-options train_cfg.max_iters=2 train_dataloader.batch_size=2'
        line = line.replace('--out data/', '--out drawn/')
        words = shlex.split(os.path.expandvars(line.removeprefix('PYTHONPATH=. ')))
        if words[0] == 'python':
            run_tool(*words[1:])
        else:
            done = subprocess.run(['bash', '-c', line], text=True, capture_output=True, check=False)
            assert done.returncode == 0, f'{line}\n{done.stderr}'


@pytest.fixture
def made_small(tmp_path, mini_data, untrained):
    """A config on tiny backbones, drawn images and small windows, and an untrained checkpoint."""

    def make(config):
        cfg = Config.fromfile(config)
        cfg.model.auxiliary_head = None
        shrink_networks(cfg.model)
        cfg.model.test_cfg.mode = 'whole'
        dataset = cfg.test_dataloader.dataset
        for step in dataset.pipeline:
            step.update({key: (64, 64) for key in ('scale', 'crop_size') if key in step})
        layout = dict(PascalVOCDataset='voc', CityscapesDataset='cityscapes')[dataset.type]
        dataset.data_root = str(mini_data(layout, train=1, val=2))
        file = tmp_path / Path(config).name
        checkpoint = untrained(cfg, file.with_suffix('.pth'))
        cfg.dump(file)
        return [str(file), str(checkpoint)]

    return make


def figure_commands():
    found = []
    for page in PAGES:
        for line in '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines():
            if ' figure' in line:
                figure = re.search('figure.', line)[0]
                found.append(pytest.param(line, id=f'{page.parent.name}: {figure}'))
    return found


def test_every_figure_of_segmentations_has_a_command():
    names = sorted(parameter.id for parameter in figure_commands())
    assert names == ['cross_coop: figure6', 'cross_coop: figure7', 'dpanet: figure6']


@pytest.mark.parametrize('line', figure_commands())
def test_figures_of_the_papers_are_drawn(line, made_small, run_tool, tmp_path, monkeypatch):
    """As the page says, but with small models; where it lets choose one, mmseg's DANet."""
    danet = (
        Path(mmseg.__file__).parent
        / '.mim/configs/danet/danet_r50-d8_4xb2-40k_cityscapes-769x769.py'
    )
    _, script, *words = shlex.split(line)
    for index, word in enumerate(words):
        if word.endswith('.py') or word == 'OTHER_CONFIG':
            config = danet if word == 'OTHER_CONFIG' else ROOT / word
            words[index : index + 2] = made_small(config)
    monkeypatch.chdir(tmp_path)
    printed = run_tool(script, *words)
    (out,) = tmp_path.glob('figure*')
    assert len(list(out.glob('*.png'))) == 2  # all frames there are
    compared = ['1:r101', '2:x65'] if 'cross-coop' in line else ['1:prediction', '2:prediction']
    assert ' | '.join(f'only {name} right (%)' for name in compared) in printed
    if 'cross-coop' in line:
        assert line.endswith(' top')  # the network of the method that is shown


# What the text mentions


def commands(page):
    """Commands of a page that start a tool of the project: the tool, then the rest."""
    lines = '\n'.join(blocks(page, 'bash', 'console')).replace('\\\n', ' ').splitlines()
    lines += re.findall(r'`([^`\n]+)`', page.read_text())
    for line in lines:
        match = re.search(r'((?:tools|demo)/[\w/]+\.(?:py|sh))( [^#]*)?', line)
        if match:
            yield match[1], match[2] or ''


def options_in(text):
    return re.findall(r'(?<![\w-])--[a-z][\w-]*', text)


@by_page
def test_options_in_commands_exist(page, help_of):
    for path, arguments in commands(page):
        script = re.sub(r'tools/(?:dist|slurm)_(\w+)\.sh', r'tools/\1.py', path)
        for option in options_in(arguments):
            assert option in options_in(help_of(script)), f'{script} has no option {option}'


@by_page
def test_options_in_the_text_exist(page, help_of):
    spans = re.findall(r'`(--[^`\n]+)`', page.read_text())
    wanted = {option for span in spans for option in options_in(span)} - FOREIGN
    if wanted:
        scripts = {path for page in PAGES for path, _ in commands(page) if path.endswith('.py')}
        known = {option for path in scripts for option in options_in(help_of(path))}
        assert wanted <= known


@by_page
def test_files_in_the_text_exist(page):
    folders = 'configs|demo|docs|mmseg_coop|requirements|tests|tools'
    pattern = rf'(?<![\w/.…-])((?:{folders})/[\w./-]*)(…|\*|\{{)?'
    for match in re.finditer(pattern, page.read_text()):
        path, more = match[1].rstrip('.'), match[2]
        if path.startswith(MADE):
            continue
        assert list(ROOT.glob(f'{path}*')) if more else (ROOT / path).exists(), path


@by_page
def test_links_lead_somewhere(page):
    text = re.sub(r'^```.*?^```$|`[^`\n]+`', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if not target.startswith(('http', '#')):
            assert (page.parent / target.partition('#')[0]).exists(), target


@by_page
def test_make_targets_exist(page):
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    text = '\n'.join([*blocks(page, 'bash'), *re.findall(r'`([^`\n]+)`', page.read_text())])
    for target in re.findall(r'\bmake ([a-z-]+)', text):
        assert target in targets
