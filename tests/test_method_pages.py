"""What the pages on the methods say of the code, the configs and the papers."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import re
import textwrap
from pathlib import Path

import mmcv.cnn
import pytest
import torch
import yaml
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS, PARAM_SCHEDULERS

import mmseg_coop.models
from mmseg_coop.analysis.paper_tables import printed_text, read_tables
from mmseg_coop.config import load_config
from mmseg_coop.models import ChannelPoolAttention, SpatialPoolAttention, decode_heads
from mmseg_coop.models.cooperation import run_in_step
from mmseg_coop.models.decode_heads import coop_head, deeplabv3plus_head
from tests.conftest import ROOT

PAGES = {path.stem: path for path in sorted((ROOT / 'docs/methods').glob('*.md'))}
#: How many equations each paper numbers, and its key in paper_tables.yml.
PAPERS = dict(cross_cooperative_learning=(1, 'cross-coop'), dpanet=(14, 'dpanet'))
ANNOTATED = ROOT / 'docs/annotated_config.py'
PAIR = 'configs/cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
DPANET = 'configs/dpanet/dpanet_r101-d8_1xb8-112k_cityscapes-768x768.py'
by_page = pytest.mark.parametrize('page', PAPERS)
by_config = pytest.mark.parametrize(
    ('page', 'config'), [('cross_cooperative_learning', PAIR), ('dpanet', DPANET)]
)


def build(config, options=None):
    """A config's model, on a device where nothing is computed, and the config."""
    cfg = load_config(str(ROOT / config), cfg_options=options)
    with torch.device('meta'):
        return MODELS.build(cfg.model), cfg


def blocks(page):
    """The fenced blocks of Python on a page: line of the page, and text."""
    text = PAGES[page].read_text()
    return [
        (text[: match.start()].count('\n') + 2, match[1])
        for match in re.finditer(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    ]


def excerpts(page):
    """The blocks that quote a file, as parameters: the file, and the quoted lines."""
    found = []
    for line, block in blocks(page):
        first, _, rest = block.partition('\n')
        if first.startswith('# ') and first.endswith('.py'):
            found.append(pytest.param(ROOT / first[2:], rest, id=f'{page}:{line}'))
    return found


def examples(page):
    """The other blocks, which run."""
    quoted = {parameter.id for parameter in excerpts(page)}
    return [
        pytest.param(block, id=f'{page}:{line}')
        for line, block in blocks(page)
        if f'{page}:{line}' not in quoted
    ]


def section(page, title):
    """The text below a heading, up to the next of its level."""
    level = title.split()[0]
    text = PAGES[page].read_text()
    start = text.index(f'\n{title}\n') + len(title) + 2
    end = re.search(rf'^{level} ', text[start:], re.MULTILINE)
    return text[start : start + end.start()] if end else text[start:]


def cells(text):
    """The rows of all tables in a text, as lists of cells."""
    rows = re.findall(r'^\|(.*)\|$', text, re.MULTILINE)
    return [[cell.strip() for cell in row.split('|')] for row in rows]


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r'^```.*?^```$', '', PAGES[page].read_text(), flags=re.MULTILINE | re.DOTALL)


def find(parts, source, start):
    """Where the parts, runs of lines, stand in the source, in order; None where they do not."""
    for part in parts:
        for index in range(start, len(source) - len(part) + 1):
            if textwrap.dedent('\n'.join(source[index : index + len(part)])).split('\n') == part:
                start = index + len(part)
                break
        else:
            return part
    return None


def test_there_is_a_page_for_each_paper():
    assert set(PAGES) == set(PAPERS)
    assert len(excerpts('cross_cooperative_learning')) >= 7
    assert len(excerpts('dpanet')) >= 8


@pytest.mark.parametrize(
    ('path', 'quoted'), [excerpt for page in PAPERS for excerpt in excerpts(page)]
)
def test_quoted_lines_stand_in_the_file(path, quoted):
    """Verbatim, in order, and one after the other except where a line `...` leaves some out."""
    parts = [
        textwrap.dedent(part.strip('\n')).split('\n')
        for part in re.split(r'^\.\.\.\n', quoted, flags=re.MULTILINE)
    ]
    missing = find(parts, path.read_text().split('\n'), 0)
    assert missing is None, f'{path.name} has no longer these lines: {missing}'


@pytest.mark.parametrize('code', [example for page in PAPERS for example in examples(page)])
def test_examples_run_and_print_what_they_say(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, 'example', 'exec'), {'__name__': 'example'})
    expected = re.findall(r'^print\(.*\)  # (.*)$', code, re.MULTILINE)
    assert expected
    assert printed.getvalue().splitlines() == expected


@by_page
def test_every_numbered_equation_is_there_in_order(page):
    numbers = list(range(1, PAPERS[page][0] + 1))
    title = '## The equations' if page == 'dpanet' else '## The equation'
    rows = [row for row in cells(section(page, title)) if row[0].isdigit() and len(row) == 3]
    assert [int(row[0]) for row in rows] == numbers
    # The paper's number 4 stands on a line without an equation.
    tags = [int(tag) for tag in re.findall(r'\\tag\{(\d+)\}', PAGES[page].read_text())]
    assert tags == [number for number in numbers if (page, number) != ('dpanet', 4)]
    headings = ' '.join(re.findall(r'^### Equations? .*$', section(page, title), re.MULTILINE))
    named = [int(number) for number in re.findall(r'\d+', headings)]
    assert min(named) == 1
    assert max(named) == numbers[-1]


@by_page
def test_formulas_survive_markdown(page):
    """GitHub takes a backslash before a sign away before the formula is set."""
    formulas = re.findall(r'\$\$?([^$]+)\$\$?', prose(page))
    assert len(formulas) > 20
    for formula in formulas:
        assert not re.search(r'\\[^A-Za-z]', formula), formula
        assert formula.count('{') == formula.count('}'), formula


@by_config
def test_the_figure_shows_every_site_of_the_heads(page, config):
    assert f'](../images/{page}.svg)' in prose(page)
    svg = (ROOT / f'docs/images/{page}.svg').read_text()
    labels = re.findall(r'<!-- (.*) -->', svg)  # matplotlib draws letters as curves
    head = build(config)[0].decode_head
    networks = head.networks.values() if hasattr(head, 'networks') else [head]
    for network in networks:
        assert network.site_channels
        for site in network.site_channels:
            assert labels.count(site) == 1, site


@by_page
def test_named_classes_tools_and_configs_exist(page):
    places = [mmseg_coop.models, decode_heads, coop_head, deeplabv3plus_head, mmcv.cnn]
    stems = [path.stem for path in ROOT.glob('configs/**/*.py')]
    checked = 0
    for span in re.findall(r'`([^`\n]+)`', prose(page)):
        if re.fullmatch(r'[A-Z]\w*[a-z]\w*[A-Z]\w*(\.\w+)?', span):  # a class, or its attribute
            name, _, attribute = span.partition('.')
            found = next((vars(place)[name] for place in places if name in vars(place)), None)
            assert found is not None or MODELS.get(name) is not None, span
            assert not attribute or hasattr(found, attribute), span
        elif re.fullmatch(r'[\w-]+\.py', span):
            assert span[:-3] in stems or list(ROOT.glob(f'tools/*/{span}')), span
        elif re.fullmatch(r'(cross-coop|coop|dpanet|deeplabv3plus)[\w-]*_…?\w*[\w-]*', span):
            assert any(stem.startswith(span.rstrip('…')) for stem in stems), span
        else:
            continue
        checked += 1
    assert checked >= 10


@by_page
def test_named_settings_are_arguments(page):
    classes = [
        coop_head.CoopHead,
        decode_heads.DeepLabV3PlusHead,
        decode_heads.DPAHead,
        SpatialPoolAttention,
        ChannelPoolAttention,
    ]
    known = {name for found in classes for name in inspect.signature(found).parameters}
    settings = [
        match[1]
        for row in cells(section(page, '## Decisions'))
        for match in re.finditer(r'`(\w+)=', '|'.join(row))
    ]
    assert len(settings) >= 4
    assert set(settings) <= known | {'avg_non_ignore', 'loss_decode', 'lr_mult', 'type'}


def chosen(page, key):
    """The options of the command line with which the decisions choose another reading."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    spans = re.findall(r'`(--cfg-options [^`]+)`', section(page, '## Decisions'))
    (options,) = [
        options
        for options in (parser.parse_args(span.split()).cfg_options for span in spans)
        if key in options
    ]
    return options


@pytest.mark.parametrize(
    ('config', 'rate'),
    [(PAIR, 0.007), (PAIR.replace('88k_voc12aug-513x513', '99k_cityscapes-768x768'), 0.035)],
)
def test_one_learning_rate_for_everything_is_a_line(config, rate):
    line = chosen('cross_cooperative_learning', 'optim_wrapper.paramwise_cfg')
    for options, rates in ((None, [rate / 10, rate]), (line, [rate])):
        model, cfg = build(config, options)
        groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
        assert sorted({group['lr'] for group in groups}) == pytest.approx(rates)
        assert {group['weight_decay'] for group in groups} == {1e-4}
        assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))


@by_config
def test_the_poly_rate_and_the_line_for_the_other_one(page, config):
    line = chosen(page, 'param_scheduler.0.end')
    n = 10
    for options, end in ((None, n - 1), (line, n)):
        cfg = load_config(str(ROOT / config), cfg_options=options)
        (scheduler,) = cfg.param_scheduler
        scheduler.end += n - cfg.train_cfg.max_iters  # the same of a run of n iterations
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
        poly = PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer))
        rates = []
        for _ in range(n):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            poly.step()
        assert rates == pytest.approx([(1 - i / end) ** 0.9 for i in range(n)])


@pytest.mark.parametrize(
    ('key', 'convolutions', 'widths', 'maximum', 'parameters'),
    [
        (None, 4, [], 'row', 23_597_058),
        ('convolutions', 0, [], 'row', 2),
        ('query_channels', 4, [512] * 3, 'row', 23_597_058 + 3 * (512**2 + 512)),
        ('channel_qkv', 4, [512] * 3, 'row', 23_597_058 + 3 * (512**2 + 512)),
        ('maximum', 4, [], 'column', 23_597_058),
    ],
)
def test_literal_readings_of_dpanet_are_lines(key, convolutions, widths, maximum, parameters):
    """Convolutions around the attentions, those for Q, K and V, and all but the classifiers."""
    options = chosen('dpanet', f'model.decode_head.{key}') if key else None
    head = build(DPANET, options)[0].decode_head
    convs = {n: m for n, m in head.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert sum(conv.kernel_size == (3, 3) for conv in convs.values()) == convolutions
    made = [c.out_channels for n, c in convs.items() if n.endswith(('query', 'key', 'value'))]
    assert made == widths
    asked = {name.split('.')[0] for name in convs if 'attention.' in name}
    assert asked == {'query_channels': {'spa'}, 'channel_qkv': {'cpa'}}.get(key, set())
    assert head.cpa.attention.maximum == maximum
    named = head.named_parameters()
    assert sum(p.numel() for name, p in named if 'conv_seg' not in name) == parameters


@pytest.mark.parametrize(
    ('page', 'config', 'stem', 'rows'),
    [
        (
            'cross_cooperative_learning',
            PAIR,
            (7, 7),
            {
                'stem of ResNet-101',
                'where in a layer it is exchanged',
                'low-level feature',
                'ensemble',
            },
        ),
        ('dpanet', DPANET, None, {'backbone'}),
    ],
)
def test_choices_that_the_papers_do_not_disclose(page, config, stem, rows):
    decided = {row[0]: row[1] for row in cells(section(page, '## Decisions')) if len(row) == 3}
    assert rows | {'dropout', 'batch norm', 'the poly rate'} <= set(decided)
    model, _ = build(config)
    modules = list(model.modules())
    norms = [module for module in modules if isinstance(module, torch.nn.SyncBatchNorm)]
    assert {norm.momentum for norm in norms} == {0.1}
    assert 'momentum 0.1' in decided['batch norm']
    dropouts = {m.p for m in modules if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d))}
    assert dropouts == {0.1}
    assert decided['dropout'].startswith('0.1')
    assert 'without multi-grid' in decided.get('output stride, rates', decided.get('backbone'))
    resnet = model.backbone
    if page == 'cross_cooperative_learning':
        xception, resnet = resnet.networks['top'], resnet.networks['bottom']
        last = [m for m in xception.exit_flow[1].modules() if getattr(m, 'groups', 1) > 1]
        assert len({conv.dilation for conv in last}) == 1
        epsilons = [
            {m.eps for m in part.modules() if isinstance(m, torch.nn.SyncBatchNorm)}
            for part in (xception, resnet)
        ]
        assert epsilons == [{1e-3}, {1e-5}]
    last = [block.conv2.dilation for block in resnet.layer4]
    assert len(set(last[1:])) == 1
    if stem is None:
        assert [m.kernel_size for m in resnet.stem if hasattr(m, 'kernel_size')] == [(3, 3)] * 3
        assert '(V1c)' in decided['backbone']
    else:
        assert resnet.conv1.kernel_size == stem


def maps_at_sites(head, pyramid):
    """The maps that a head offers, by site."""
    offered = {}

    def note(site, features):
        offered.setdefault(site, []).append(features['head'])
        return features

    run_in_step(dict(head=head.steps(pyramid)), note)
    return offered


def test_maps_are_exchanged_behind_their_relu():
    """All but the head's input, and so is Xception's low-level map."""
    xception = mmseg_coop.models.Xception(depth=41, out_indices=(1, 4))
    assert xception(torch.rand(1, 3, 33, 33))[0].min() >= 0
    head = decode_heads.DeepLabV3PlusHead(
        in_channels=6, low_level_in_channels=5, low_level_channels=4, channels=8, num_classes=2
    ).eval()
    maps = maps_at_sites(head, [torch.randn(1, 5, 16, 16), torch.randn(1, 6, 9, 9)])
    smallest = {site: min(x.min() for x in offered) for site, offered in maps.items()}
    assert smallest.pop('input') < 0
    assert set(smallest) == {'aspp', 'aspp_output', 'low_level', 'decoder'}
    assert all(value >= 0 for value in smallest.values())


@by_page
def test_tables_of_the_paper_are_mapped_to_configs(page):
    expected = [
        (table.number, row.config, row.output, printed_text(row))
        for table in read_tables(ROOT)
        if table.paper == PAPERS[page][1]
        for row in table.rows
        if row.config and row.printed
    ]
    rows = [
        row
        for row in cells(section(page, "## From the paper's tables to configs"))
        if row[0].isdigit()
    ]
    found = []
    for number, _, config, *output, figure in rows:
        name, link = re.fullmatch(r'\[(.*)\]\((.*)\)', config).groups()
        assert Path(link).stem == name
        found.append((int(number), name, (output or [''])[0].strip('`') or None, figure))
    assert found == expected


def test_the_printed_means_that_are_not_means():
    data = yaml.safe_load((ROOT / 'tools/analysis_tools/paper_tables.yml').read_text())
    rows = data['papers']['cross-coop']['tables'][0]['rows']
    notes = [row['note'] for row in rows if 'note' in row]
    assert len(notes) == 2
    for note in notes:
        for figure in re.search(r'is (\d+\.\d), not (\d+\.\d)', note).groups():
            assert figure in PAGES['cross_cooperative_learning'].read_text()


def test_shapes_at_the_sites():
    """At 513x513, as the page says, on a device where nothing is computed."""
    cfg = Config.fromfile(ANNOTATED)
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        pyramids = model.extract_feat(torch.empty(1, 3, 513, 513))
        maps = maps_at_sites(model.decode_head.networks['top'], pyramids['top'])
    shapes = {site: [tuple(x.shape[1:]) for x in offered] for site, offered in maps.items()}
    rows = cells(section('cross_cooperative_learning', '### Figures 2 and 3: the layers'))[2:]
    assert [row[0].strip('`') for row in rows] == list(shapes)
    for row in rows:
        said = [
            tuple(map(int, shape.split(', '))) for shape in re.findall(r'\(N, ([\d, ]+)\)', row[-1])
        ]
        own = shapes[row[0].strip('`')]
        assert int(row[3]) == len(own)
        assert list(dict.fromkeys(own)) == said


def test_costs_are_those_of_the_metafiles_and_of_the_formulas():
    text = PAGES['cross_cooperative_learning'].read_text()
    models = {}
    for file in ROOT.glob('configs/*/metafile.yml'):
        for model in yaml.safe_load(file.read_text())['Models']:
            models[model['Name']] = model['Metadata']
    for method in (
        'deeplabv3plus_x65-d16',
        'deeplabv3plus_r101-d16',
        'cross-coop_x65-r101-d16',
        'cross-coop-concat_x65-r101-d16',
        'cross-coop-gated_x65-r101-d16',
    ):
        cost = models[f'{method}_1xb6-88k_voc12aug-513x513']
        assert f'| {cost["Parameters (M)"]:.2f} | {cost["GMAC"]:.1f} |' in text
    weights = 4 * (2048**2 + 8 * 256**2 + 48**2)
    assert f'= {weights / 1e6:.1f}$ million weights' in text

    text = PAGES['dpanet'].read_text()
    (c, cq, n, t, inner) = (512, 64, 96 * 96, 325, 256)
    table = {row[0]: row[-1].split()[0] for row in cells(section('dpanet', '## Cost')) if row[0]}
    assert table['SPA'] == f'{2 * c * n * t / 1e9:.2f}'
    spa_conv = c * cq * n + cq * n * t + c * n * t + (c * cq + c * c) * t
    assert table["SPA, `qkv='conv'`, $C_q = C / 8$"] == f'{spa_conv / 1e9:.2f}'
    non_local = (4 * c * inner * n + 2 * inner * n * n) / 1e9
    assert table[r'non-local, $\hat C$ inside'] == f'{non_local:.1f}'
    assert table['CPA'] == f'{2 * c * c * n / 1e9:.2f}'
    assert f'{2 * c * (35 * n + t * 96) / 1e9:.2f} GMAC' in text
    (c, cq) = (2048, 256)
    for n, said in ((9216, '58.01'), (32768, '601.40')):
        layers = (3 * c * cq + 2 * cq + c + 3 * cq) * n + 2 * cq * n * n
        assert f'{layers / 1e9:.2f}' == said
        assert rf'F({n}) = {said} \cdot 10^9' in text
        assert f'{2 * c * n * t / 1e9:.1f}' in text
        assert f'{(4 * c * cq * n + 2 * cq * n * n) / 1e9:.1f}' in text
    for module, parameters in (
        (SpatialPoolAttention(64), 1),
        (SpatialPoolAttention(64, qkv='conv'), 2 * (64 * 8 + 8) + 64**2 + 64 + 1),
        (ChannelPoolAttention(64), 1),
        (mmcv.cnn.NonLocal2d(64), 4 * 64 * 32 + 3 * 32 + 64),
    ):
        assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_the_annotated_config_is_the_shipped_one():
    shipped = re.search(r'configs/\S+\.py', ANNOTATED.read_text())[0]
    assert Config.fromfile(ANNOTATED).to_dict() == Config.fromfile(ROOT / shipped).to_dict()
    assert ANNOTATED.read_text().count('#') > 30


def test_images_are_small_and_their_making_is_told():
    images = [path for path in (ROOT / 'docs/images').iterdir() if path.suffix != '.txt']
    sources = (ROOT / 'docs/images/SOURCES.txt').read_text()
    assert len(images) >= 3
    for path in images:
        assert path.stat().st_size < 200_000, path.name
        assert path.name in sources
    for script in re.findall(r'python (\S+\.py)', sources):
        assert (ROOT / script).is_file(), script
