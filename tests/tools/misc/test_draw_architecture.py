from __future__ import annotations

import functools
import html
import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / 'tools/misc/draw_architecture.py'
CONFIGS = ROOT / 'configs'
PAIR = CONFIGS / 'cross_coop/cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513.py'
LIGHT = CONFIGS / 'cross_coop/cross-coop_mnv2-effl0-d16_1xb6-2k_camvid-180x240.py'
MINI = CONFIGS / 'cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py'
DPANET = CONFIGS / 'dpanet/dpanet_r101-d8_1xb8-112k_cityscapes-768x768.py'
RESNEST = CONFIGS / 'dpanet/dpanet_s101-d8_1xb16-119k_voc12aug-480x480.py'
#: The pictures of the documentation, and the configs that they show.
PICTURES = {'cross_cooperative_learning': PAIR, 'dpanet': DPANET}
SITES = ('input', 'aspp', 'aspp_output', 'low_level', 'decoder')
LAYERS = dict(input=1, aspp=5, aspp_output=1, low_level=1, decoder=2)


@pytest.fixture(scope='module')
def tool():
    """The tool as a module."""
    sys.path.insert(0, str(TOOL.parent))
    yield importlib.import_module('draw_architecture')
    sys.path.remove(str(TOOL.parent))


@pytest.fixture(scope='module')
def drawn(tool):
    """Returns a function that draws a shipped config, once."""
    return functools.cache(lambda config: tool.draw(str(config)))


@pytest.fixture
def draw(tool, tmp_path):
    """Returns a function that draws a config, with some options of its decode head changed."""

    def run(config, **head):
        path = tmp_path / 'config.py'
        path.write_text(f'_base_ = {str(config)!r}\nmodel = dict(decode_head={head!r})\n')
        return tool.draw(str(path))

    return run


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text()]


def labels(figure):
    return [text.get_text() for text in texts(figure)]


def paths(figure, tool):
    """The cooperative paths of a pair: whether there is a head at the upper and the lower end."""
    lines = [
        line
        for line in figure.findobj(Line2D)
        if to_hex(line.get_color()) == tool.PATH and line.get_linewidth() == 2.2
    ]
    middle = [line for line in lines if len(set(line.get_xdata())) == 1]  # not that of the legend
    ends = {line.get_xdata()[0]: line.get_ydata() for line in middle}
    return [ends[x] for x in sorted(ends)]


def merges(figure):
    """Heights of the signs of a fusion, without that of the legend."""
    circles = [circle for circle in figure.findobj(Circle) if circle.radius == 9]
    return sorted(circle.center[1] for circle in circles if circle.center[1] < 640)


def written_labels(svg):
    """The labels in a file; matplotlib draws letters as curves and notes the text beside them."""
    return [html.unescape(label) for label in re.findall(r'<!-- (.*?) -->', svg.read_text())]


@pytest.mark.parametrize('name', PICTURES)
def test_pictures_of_the_documentation_show_the_model(drawn, name):
    file = ROOT / f'docs/pictures/{name}.svg'
    assert written_labels(file) == labels(drawn(PICTURES[name]))
    assert file.stat().st_size < 150_000
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', file.read_text())
    assert 0.5 < float(size[2]) / float(size[1]) < 0.6


def test_a_pair_is_drawn_as_it_is_built(tool, drawn):
    figure = drawn(PAIR)
    words = labels(figure)
    for label in ('top: DeepLabV3+ on Xception-65', 'bottom: DeepLabV3+ on ResNet-101', *SITES):
        assert words.count(label) == 1
    for label in ('rate 6', 'rate 12', 'rate 18', 'concat 1280', 'concat 304', 'to 48', 'to 21'):
        assert words.count(label) == 2
    assert words.count('image') == 3  # the input, and both image poolings
    assert words.count('low level: 256 channels, stride 4') == 2
    assert {'top.loss_ce', 'bottom.loss_ce', 'ensemble'} < set(words)
    assert 'own and received map: SumFusion' in words
    assert 'loss = decode.top.loss_ce + decode.bottom.loss_ce' in words
    assert len(paths(figure, tool)) == sum(LAYERS.values())
    assert len(merges(figure)) == 2 * sum(LAYERS.values())


def test_another_pair_is_another_picture(drawn):
    words = labels(drawn(LIGHT))
    for label in ('top: DeepLabV3+ on MobileNetV2', 'bottom: DeepLabV3+ on tf_efficientnet_lite0'):
        assert label in words
    assert words.count('sep. 3x3') == 2 * (3 + 2)
    assert words.count('concat 640') == words.count('to 11') == 2
    assert words.count('low level: 24 channels, stride 4') == 2


@pytest.mark.parametrize('left_out', [(), ('input',), ('input', 'aspp_output')])
def test_paths_are_drawn_where_networks_exchange(draw, tool, left_out):
    used = [site for site in SITES if site not in left_out]
    figure = draw(MINI, connections=used)
    assert len(paths(figure, tool)) == sum(LAYERS[site] for site in used)
    boxes = [patch.get_linestyle() for patch in figure.axes[0].patches]
    assert boxes.count('--') == len(left_out)


@pytest.mark.parametrize(
    ('topology', 'upper', 'lower'),
    [
        ('cross', 10, 10),
        ('one_way', 0, 10),
        ({'_delete_': True, 'top': ['bottom']}, 10, 0),
        ('none', 0, 0),
    ],
)
def test_the_receiver_has_the_arrow_head(draw, tool, topology, upper, lower):
    figure = draw(MINI, topology=topology)
    heights = merges(figure)
    assert len([y for y in heights if y < tool.MIDDLE]) == upper
    assert len([y for y in heights if y > tool.MIDDLE]) == lower
    assert len(paths(figure, tool)) == max(upper, lower)
    assert ('cooperative path' in labels(figure)) == (topology != 'none')


def test_fusion_and_layers_follow_the_config(draw):
    words = labels(
        draw(
            MINI,
            fusion=dict(type='GatedFusion'),
            dilations=(1, 2, 3),
            num_decoder_convs=1,
            loss_decode=[dict(type='CrossEntropyLoss', loss_name='loss_x')],
        )
    )
    assert 'own and received map: GatedFusion' in words
    assert words.count('rate 3') == 2
    assert 'rate 4' not in words
    assert words.count('concat 128') == 2  # four branches of 32
    assert 'loss = decode.top.loss_x + decode.bottom.loss_x' in words


def test_dpanet_is_drawn_as_it_is_built(drawn):
    words = labels(drawn(DPANET))
    assert {'ResNetV1c-101', 'stride 8', '1, 4, 8, 10, 12', '1, 5, 7, 9, 13', 'over 325'} < set(
        words
    )
    assert {'input', 'attention_input', 'attention', 'attention_output'} < set(words)
    assert {'query Q = X', 'max D - D', 'concat 1024', '512x512'} < set(words)
    assert {'spa.loss_ce', 'cpa.loss_ce', 'fused.loss_ce'} < set(words)
    assert words.count('1x1 to 19') == 2


def test_options_of_dpanet_are_drawn(draw):
    words = labels(
        draw(
            RESNEST,
            convolutions='after',
            branch_fusion='sum',
            qkv='conv',
            scaled=True,
            similarity='square',
            maximum='column',
            key_sizes=(3, 4),
            value_sizes=(5,),
            loss_weights=dict(spa=0.4, cpa=0),
        )
    )
    assert 'ResNeSt-101' in words
    assert {'query Q = 1x1 of X', '3, 4', '5', 'over 25', 'of KᵀQ, scaled'} < set(words)
    assert {'(max D - D)²', 'by column', '2048x2048', 'sum, 512'} < set(words)
    assert 'attention_input' not in words
    assert 'cpa.loss_ce' not in words
    assert 'loss = decode.fused.loss_ce + 0.4 x decode.spa.loss_ce' in words


def test_literal_readings_of_dpanet_are_drawn(draw):
    words = labels(draw(DPANET, convolutions='none', channel_qkv='conv'))
    assert {'D = Q Kᵀ', 'μ C V + X', 'V = 1x1 of X', 'concat 4096'} < set(words)
    assert not {'attention_input', 'attention_output', '3x3 conv', 'to 512'} & set(words)


def test_without_branch_losses_the_loss_is_plain(draw):
    words = labels(draw(DPANET, loss_weights=dict(spa=0, cpa=0)))
    assert 'loss = decode.loss_ce' in words
    assert 'in training' not in words


def crosses(box, start, end):
    """Whether a horizontal or vertical line passes through a box."""
    (x0, x1), (y0, y1) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return x0 < box.x1 and x1 > box.x0 and y0 < box.y1 and y1 > box.y0


@pytest.mark.parametrize('config', [PAIR, LIGHT, DPANET, RESNEST], ids=lambda path: path.stem)
def test_text_is_legible(tool, drawn, config):
    figure = drawn(config)
    renderer = figure.canvas.get_renderer()
    boxes = {text: text.get_window_extent(renderer).padded(-1) for text in texts(figure)}
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
    canvas = figure.bbox
    lines = [line for line in figure.findobj(Line2D) if line.get_zorder() in (3, 4)]
    circles = list(figure.findobj(Circle))
    assert lines
    for text, box in boxes.items():
        assert canvas.x0 < box.x0 < box.x1 < canvas.x1, text.get_text()
        assert canvas.y0 < box.y0 < box.y1 < canvas.y1, text.get_text()
        # in pixels, of a picture that is 900 pixels wide
        assert text.get_fontsize() / 0.72 * 900 / tool.WIDTH > 8, text.get_text()
        for line in lines:
            points = line.get_transform().transform(line.get_xydata())
            covered = line.get_zorder() == 4 and line.get_linestyle() == '-'  # by a site's box
            if text.get_text() in (*LAYERS, *tool.EXCHANGED.values()) and covered:
                continue
            for start, end in itertools.pairwise(points):
                assert not crosses(box, start, end), text.get_text()
        for circle in circles:
            assert not box.overlaps(circle.get_window_extent(renderer)), text.get_text()


def test_writes_files_and_overwrites_none(tool, monkeypatch, capsys, tmp_path):
    out = tmp_path / 'new/pair.svg'
    words = [str(TOOL), str(MINI), '--out', str(out)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f'written to {out}'
    assert 'top: DeepLabV3+ on ResNetV1c-18' in written_labels(out)
    first = out.read_bytes()
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit, match=r"^error: .*pair.svg' exists; add --force to replace it"):
        tool.main()
    monkeypatch.setattr(sys, 'argv', [*words, '--force'])
    tool.main()
    assert capsys.readouterr().out.splitlines()[-1] == f'written to {out}'
    assert out.read_bytes() == first  # two runs give the same file


@pytest.mark.parametrize(
    ('config', 'out', 'code', 'message'),
    [
        ('deeplabv3plus/deeplabv3plus_r101-d16_1xb6-88k_voc12aug-513x513.py', 'a.svg', 1, 'pairs'),
        (
            'dpanet/dpanet-coop_r50-r101-d8_1xb8-112k_cityscapes-768x768.py',
            'a.png',
            1,
            'CrossCoopDPAHead cannot be drawn; take a config with CrossCoopASPPHead or DPAHead',
        ),
        ('gone.py', 'a.svg', 1, 'gone.py'),
        ('gone.py', 'a.pdf', 2, "a .svg or .png file, not '"),
    ],
)
def test_wrong_input_ends_in_one_line(
    tool, monkeypatch, capsys, tmp_path, config, out, code, message
):
    words = ['draw_architecture.py', str(CONFIGS / config), '--out', str(tmp_path / out)]
    monkeypatch.setattr(sys, 'argv', words)
    with pytest.raises(SystemExit) as stop:
        tool.main()
    printed = capsys.readouterr().err
    line = stop.value.code if isinstance(stop.value.code, str) else printed.splitlines()[-1]
    assert (1 if isinstance(stop.value.code, str) else stop.value.code) == code
    assert message in line
    assert '\n' not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_shipped_pairs_and_dpanets_can_be_drawn(tool):
    count = 0
    for config in sorted(CONFIGS.glob('[!_]*/*.py')):
        head = Config.fromfile(config).model.decode_head
        if head.type == 'DPAHead' or (head.type == 'CrossCoopASPPHead' and len(head.networks) == 2):
            assert len(texts(tool.draw(str(config)))) > 40
            count += 1
    assert count == 27 + 10
