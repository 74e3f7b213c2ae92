"""Draw the block diagram of a model: its networks, layers, sites of cooperation, losses, outputs.

Sites, layers, channels, strides and paths are read off the built model, so that the picture says
what the code does. Drawn are a CrossCoopASPPHead of two networks, and a DPAHead.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from matplotlib.text import Text
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from mmseg_coop.models import CrossCoopASPPHead, DPAHead
from mmseg_coop.models.cooperation import Steps
from mmseg_coop.utils import load_config, short_errors

WIDTH = 1180  # of the picture; all lengths below are in its units
INK, LINE, PATH = '#1f2328', '#57606a', '#1a7f37'
#: Fill and edge of what is drawn, by kind.
KINDS = dict(
    plain=('#ffffff', LINE),
    first=('#ddf4ff', '#0969da'),
    second=('#fff1e5', '#bc4c00'),
    first_panel=('#f5fbff', '#b6d9f7'),
    second_panel=('#fffaf5', '#f3d0b0'),
    frame=('#ffffff', '#afb8c1'),
    site=('#dafbe1', PATH),
    unused=('#ffffff', '#afb8c1'),
    loss=('#ffebe9', '#cf222e'),
    output=('#fbefff', '#8250df'),
)
#: What is exchanged at a site, in the paper's words where it has some.
EXCHANGED = dict(
    input='Connection 1',
    aspp='every branch',
    aspp_output='Connection 2',
    low_level='projection',
    decoder='every convolution',
)
MIDDLE = 310.0  # the height around which the two networks, or branches, are mirrored
#: Of DPANet's sites: left and right of their labels, and where on the line they lie.
TAPS: dict[str, tuple[float, float, float]] = dict(
    input=(102, 222, 162),
    attention_input=(238, 378, 363),
    attention=(390, 838, 832),
    attention_output=(846, 990, 985),
)
LARGE, NORMAL, SMALL = 16.0, 14.5, 13.5  # sizes of letters
Point = tuple[float, float]


class Picture:
    """A canvas whose y axis points down, in the units of ``WIDTH``.

    Args:
        height: Height of the picture.
    """

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(WIDTH / 100, height / 100), dpi=100, facecolor='white')
        self.canvas = FigureCanvasAgg(self.figure)  # no display is needed
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.axis('off')

    def text(self, x: float, y: float, words: str, size: float = NORMAL, **style: Any) -> Text:
        """Write, centred at ``(x, y)`` unless ``ha`` says otherwise."""
        style = {'ha': 'center', 'va': 'center', 'color': INK, 'zorder': 9, **style}
        # A letter of size 1 is a unit of 1 / 100 inch high; matplotlib counts 1 / 72 inch.
        return self.axes.text(x, y, words, fontsize=size * 0.72, **style)

    def _add(self, artist: Artist) -> None:
        artist.set_clip_on(False)  # nothing is outside, and it doubles the size of small parts
        self.axes.add_artist(artist)

    def length_of(self, text: Text) -> float:
        """Length of what was written."""
        extent = text.get_window_extent(self.canvas.get_renderer())
        return float(max(extent.width, extent.height))

    def box(
        self,
        place: tuple[float, float, float, float],
        *lines: str,
        kind: str = 'plain',
        rotation: float = 0,
        **style: Any,
    ) -> None:
        """Draw a box with lines of text in its middle.

        Args:
            place: Left, top, right, bottom; top and bottom may be swapped.
            *lines: The text; lines that begin with a backquote are set as code. All become
                smaller if one is too long.
            kind: One of ``KINDS``.
            rotation: Of the text, in degrees.
            **style: Passed to the patch.
        """
        left, right = place[0], place[2]
        top, bottom = sorted(place[1::2])
        fill, edge = KINDS[kind]
        style = {'facecolor': fill, 'edgecolor': edge, 'linewidth': 1, 'zorder': 5, **style}
        shape = f'round,pad=0,rounding_size={min(8, (right - left) / 4)}'
        self._add(FancyBboxPatch((left, top), right - left, bottom - top, boxstyle=shape, **style))
        x, y = (left + right) / 2, (top + bottom) / 2 - 9.5 * (len(lines) - 1)
        texts = []
        for number, line in enumerate(lines):
            look: dict[str, Any] = (
                dict(family='monospace', weight='bold') if line.startswith('`') else {}
            )
            words = line.removeprefix('`')
            texts.append(self.text(x, y + 19 * number, words, rotation=rotation, **look))
        widest = max((self.length_of(text) for text in texts), default=0)
        room = (bottom - top if rotation else right - left) - 8
        if widest > room:
            for text in texts:
                text.set_fontsize(float(text.get_fontsize()) * room / widest)

    def line(
        self, *points: Point, heads: tuple[bool, bool] = (False, True), path: bool = False
    ) -> None:
        """Draw a line through points.

        Args:
            *points: Its points; all parts are horizontal or vertical.
            heads: Whether it has an arrow's head at its start and at its end.
            path: Whether it is a cooperative path; those pass over other lines.
        """
        color, width, zorder = (PATH, 2.2, 4) if path else (LINE, 1.3, 3)
        drawn = list(points)
        for end, neighbour, head in ((0, 1, heads[0]), (-1, -2, heads[1])):
            if head:
                drawn[end] = self._head(points[end], points[neighbour], color)
        xs, ys = zip(*drawn, strict=True)
        if path:
            self._add(Line2D(xs, ys, color='white', linewidth=width + 4, zorder=zorder))
        self._add(
            Line2D(xs, ys, color=color, linewidth=width, zorder=zorder, solid_capstyle='butt')
        )

    def _head(self, tip: Point, before: Point, color: str) -> Point:
        """Draw an arrow's head and return where the line has to end."""
        (x, y), (u, v) = tip, before
        length = abs(x - u) + abs(y - v)
        dx, dy = (x - u) / length, (y - v) / length
        back = (x - 9 * dx, y - 9 * dy)
        side = (-4.5 * dy, 4.5 * dx)
        corners = [tip, (back[0] + side[0], back[1] + side[1])]
        corners.append((back[0] - side[0], back[1] - side[1]))
        self._add(Polygon(corners, facecolor=color, edgecolor='none', zorder=6))
        return (x - 7 * dx, y - 7 * dy)

    def merge(self, x: float, y: float) -> None:
        """Draw the sign of a fusion."""
        self._add(Circle((x, y), 9, facecolor='white', edgecolor=PATH, linewidth=1.6, zorder=7))
        xs, ys = (x - 5, x + 5, math.nan, x, x), (y, y, math.nan, y - 5, y + 5)
        self._add(Line2D(xs, ys, color=PATH, linewidth=1.6, zorder=8))

    def tap(self, start: Point, end: Point) -> None:
        """Show at which line a site lies."""
        self._add(Circle(start, 3.5, color=PATH, zorder=7))
        xs, ys = zip(start, end, strict=True)
        self._add(Line2D(xs, ys, color=PATH, linewidth=1.4, linestyle=':', zorder=4))

    def key(self, x: float, y: float, sign: str, words: str) -> float:
        """Explain a sign.

        Args:
            x: Where the entry begins.
            y: Its middle.
            sign: ``'merge'``, ``'path'`` or a kind of box.
            words: The explanation.

        Returns:
            Where the next entry may begin.
        """
        if sign == 'merge':
            self.merge(x + 9, y)
            right = x + 18
        elif sign == 'path':
            self.line((x, y), (x + 40, y), path=True)
            right = x + 40
        else:
            self.box((x, y - 9, x + 28, y + 9), kind=sign)
            right = x + 28
        text = self.text(right + 8, y, words, ha='left')
        return right + 8 + self.length_of(text) + 26


def shapes_of(steps: Steps) -> dict[str, list[torch.Size]]:
    """Run a network alone and note the shapes of its maps ``(N, C, H, W)`` at every site."""
    shapes: dict[str, list[torch.Size]] = {}
    feature = None
    while True:
        try:
            site, feature = steps.send(feature)  # type: ignore[arg-type]
        except StopIteration:
            return shapes
        shapes.setdefault(site, []).append(feature.shape)


def say_conv(module: nn.Module) -> list[str]:
    """Say of which kind the first convolution of a module is, and its rate if it has one."""
    conv = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    kind = 'sep. ' if conv.groups > 1 else ''
    words = [f'{kind}{conv.kernel_size[0]}x{conv.kernel_size[1]}']
    return words if conv.dilation == (1, 1) else [*words, f'rate {conv.dilation[0]}']


def say_backbone(cfg: dict[str, Any]) -> str:
    """Name a backbone by its config, such as ``Xception-65``."""
    name = cfg.get('model_name', cfg['type'])
    return f'{name}-{cfg["depth"]}' if 'depth' in cfg else str(name)


def say_map(image: torch.Tensor, feature: torch.Tensor) -> list[str]:
    """Say the channels of a map, and how much smaller than the image it is."""
    stride = round(image.shape[3] / feature.shape[3])
    return [f'{feature.shape[1]} channels', f'stride {stride}']


def losses_of(head: Any, output: str) -> list[str]:
    """Names of an output's losses, as they are logged behind ``decode.``."""
    losses = head.loss_decode
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return [f'{output}.{loss.loss_name}' for loss in losses]


class Site(NamedTuple):
    """Where the maps of a site leave their boxes."""

    left: float  # of all boxes
    right: float
    y: float  # in the upper network
    layers: list[float]  # the x of each layer


def draw_network(
    picture: Picture,
    head: Any,
    pyramid: Sequence[torch.Tensor],
    image: torch.Tensor,
    names: tuple[str, str],
    *,
    lower: bool,
) -> dict[str, Site]:
    """Draw one DeepLabV3+.

    Args:
        picture: The canvas.
        head: The network's head.
        pyramid: Its backbone's feature pyramid, each level ``(N, C_i, H_i, W_i)``.
        image: The image, ``(N, 3, H, W)``.
        names: Of the network and of its backbone.
        lower: Whether it is the lower one, which is the mirror image of the upper one.

    Returns:
        Its sites, in order.
    """
    kind = 'second' if lower else 'first'
    shapes = shapes_of(head.steps(pyramid))
    output, low_level = pyramid[head.in_index], pyramid[head.low_level_index]

    def y(height: float) -> float:
        return 2 * MIDDLE - height if lower else height

    def box(place: tuple[float, float, float, float], *lines: str, **style: Any) -> None:
        left, top, right, bottom = place
        picture.box((left, y(top), right, y(bottom)), *lines, **{'kind': kind, **style})

    def line(*points: Point) -> None:
        picture.line(*((x, y(height)) for x, height in points))

    box((98, 14, 1168, 252), kind=f'{kind}_panel', zorder=1)
    title = f'{names[0]}: DeepLabV3+ on {names[1]}'
    picture.text(112, y(34), title, LARGE, ha='left', weight='bold')

    line((48, MIDDLE - 34), (48, 184), (112, 184))
    box((112, 60, 228, 226), names[1], *say_map(image, output))
    sites = dict(input=Site(112, 228, 226, [170]))

    line((228, 184), (250, 184))
    box((250, 116, 596, 244), kind='frame', zorder=2)
    picture.text(423, y(129), f'ASPP, {head.channels} channels a branch', SMALL)
    branches = [*map(say_conv, head.aspp), ['image', 'pooling']]
    step = 342 / len(branches)
    lefts = [254 + step * number for number in range(len(branches))]
    for left, branch in zip(lefts, branches, strict=True):
        box((left, 142, left + step - 4, 226), *branch)
    sites['aspp'] = Site(250, 596, 226, [left + step / 2 - 2 for left in lefts])

    line((596, 184), (612, 184))
    words = [f'concat {head.bottleneck.in_channels}', *say_conv(head.bottleneck)]
    box((612, 142, 712, 226), *words, f'to {head.channels}')
    sites['aspp_output'] = Site(606, 716, 226, [662])

    picture.text(476, y(66), f'low level: {", ".join(say_map(image, low_level))}', SMALL)
    line((228, 78), (724, 78))
    width = shapes['low_level'][0][1]
    box((724, 44, 806, 112), *say_conv(head.low_level), f'to {width}')
    sites['low_level'] = Site(722, 808, 112, [765])

    line((806, 78), (826, 78))
    line((712, 184), (826, 184))
    factor = round(low_level.shape[3] / output.shape[3])
    picture.text(797, y(172), f'x{factor}', SMALL)  # enlarged
    box((826, 44, 850, 226), f'concat {head.channels + width}', rotation=90)

    right, step = 850.0, 176 / max(1, len(head.decoder))
    layers = []
    for number, conv in enumerate(head.decoder):
        left = 866 + step * number
        line((right, 184), (left, 184))
        right = left + step - 16
        box((left, 142, right, 226), *say_conv(conv), f'to {head.channels}')
        layers.append((left + right) / 2)
    sites['decoder'] = Site(866, 1026, 226, layers)

    line((right, 184), (1044, 184))
    box((1044, 142, 1160, 226), *say_conv(head.conv_seg), f'to {head.out_channels}')
    line((1102, 142), (1102, 112))
    losses = [f'`{loss}' for loss in losses_of(head, names[0])]
    box((1044, 44, 1160, 112), 'loss', *losses, kind='loss')
    line((1102, 226), (1102, MIDDLE - 24))
    return sites


def draw_pair(cfg: Any, model: Any, image: torch.Tensor) -> Figure:
    """Draw two cooperating DeepLabV3+ networks.

    Args:
        cfg: The config.
        model: A segmentor with a :class:`CrossCoopASPPHead`.
        image: An image, ``(N, 3, H, W)``.

    Returns:
        The picture.

    Raises:
        ValueError: There are not two networks.
    """
    head = model.decode_head
    names = head.network_names
    if len(names) != 2:
        raise ValueError(f'the model has the networks {list(names)}; only pairs can be drawn.')
    pyramids = model.extract_feat(image)
    picture = Picture(668)
    size = 'x'.join(map(str, image.shape[2:]))
    picture.box((10, MIDDLE - 34, 86, MIDDLE + 34), 'image', size)
    picture.box((1044, MIDDLE - 24, 1160, MIDDLE + 24), '`ensemble', 'sum', kind='output')
    for name in names:
        backbone = say_backbone(cfg.model.backbone.networks[name])
        sites = draw_network(
            picture,
            head.networks[name],
            pyramids[name],
            image,
            (name, backbone),
            lower=name != names[0],
        )

    paths = head.cooperation.paths
    fusions = set()
    for name, site in sites.items():
        used = name in paths and any(layer.senders_of for layer in paths[name])
        picture.box(
            (site.left, MIDDLE - 24, site.right, MIDDLE + 24),
            f'`{name}',
            EXCHANGED[name],
            kind='site' if used else 'unused',
            linestyle='-' if used else '--',
        )
        for x, layer in zip(site.layers if used else [], paths[name] if used else [], strict=True):
            fusions |= {type(fusion).__name__ for fusion in layer.fusions.values()}
            receives = [bool(layer.senders_of.get(network)) for network in names]
            ends = [site.y, 2 * MIDDLE - site.y]
            for end, receive, away in zip((0, 1), receives, (9, -9), strict=True):
                if receive:
                    picture.merge(x, ends[end])
                    ends[end] += away
            picture.line((x, ends[0]), (x, ends[1]), heads=(receives[0], receives[1]), path=True)

    x = 98.0
    if fusions:
        x = picture.key(x, 642, 'path', 'cooperative path')
        x = picture.key(x, 642, 'merge', f'own and received map: {", ".join(sorted(fusions))}')
    losses = [loss for name in names for loss in losses_of(head.networks[name], name)]
    picture.key(x, 642, 'loss', f'loss = {" + ".join(f"decode.{loss}" for loss in losses)}')
    return picture.figure


def draw_spatial(picture: Picture, attention: Any, main: float) -> None:
    """Draw spatial pool attention, from x 346 to 846 around the height ``main``."""
    made = '' if attention.query is None else '1x1, '
    for sizes, words, y in (
        (attention.pool_keys.sizes, f'keys K: {made}pooled to', main - 55),
        (attention.pool_values.sizes, f'values V: {made}pooled to', main + 55),
    ):
        picture.line((380, main), (380, y), (400, y))
        picture.box((400, y - 22, 546, y + 22), words, ', '.join(map(str, sizes)), kind='first')
    picture.line((346, main), (568, main))
    picture.text(471, main - 11, 'query Q = 1x1 of X' if made else 'query Q = X', SMALL)
    picture.line((546, main - 55), (568, main - 55))
    anchors = attention.pool_keys.num_anchors
    scaled = '' if attention.energy_scale == 1 else ', scaled'
    lines = ['M = softmax', f'of KᵀQ{scaled}', f'over {anchors}']
    picture.box((568, main - 77, 692, main + 20), *lines, kind='first')
    picture.line((692, main), (714, main))
    picture.line((546, main + 55), (714, main + 55))
    picture.line((380, main), (380, main + 96), (766, main + 96), (766, main + 77))
    picture.box((714, main - 32, 818, main + 77), 'λ V M + X', 'λ from 0', kind='first')
    picture.line((818, main), (846, main))


def draw_channel(picture: Picture, attention: Any, main: float) -> None:
    """Draw channel pool attention, from x 346 to 846 around the height ``main``."""
    channels = attention.in_channels
    distance = 'max D - D' if attention.similarity == 'subtract' else '(max D - D)²'
    made = attention.query is not None
    product = ['D = Q Kᵀ', '1x1 of X'] if made else ['D = X Xᵀ']
    picture.line((346, main), (400, main))
    picture.box((400, main - 40, 500, main + 40), *product, f'{channels}x{channels}', kind='second')
    picture.line((500, main), (516, main))
    picture.box(
        (516, main - 40, 612, main + 40), distance, f'by {attention.maximum}', kind='second'
    )
    picture.line((612, main), (628, main))
    picture.box((628, main - 40, 698, main + 40), 'softmax', 'by row', kind='second')
    picture.line((698, main), (714, main))
    picture.line((380, main), (380, main + 66), (766, main + 66), (766, main + 40))
    words = ['μ C V + X', 'V = 1x1 of X'] if made else ['μ C X + X']
    picture.box((714, main - 40, 818, main + 40), *words, 'μ from 0', kind='second')
    picture.line((818, main), (846, main))


def draw_dpanet(cfg: Any, model: Any, image: torch.Tensor) -> Figure:
    """Draw DPANet.

    Args:
        cfg: The config.
        model: A segmentor with a :class:`DPAHead`.
        image: An image, ``(N, 3, H, W)``.

    Returns:
        The picture.
    """
    head = model.decode_head
    pyramid = model.extract_feat(image)
    picture = Picture(668)
    classes = f'to {head.out_channels}'
    size = 'x'.join(map(str, image.shape[2:]))
    picture.box((10, MIDDLE - 34, 86, MIDDLE + 34), 'image', size)
    picture.line((86, MIDDLE), (102, MIDDLE))
    backbone = say_backbone(cfg.model.backbone)
    words = say_map(image, pyramid[head.in_index])
    picture.box((102, MIDDLE - 60, 222, MIDDLE + 60), backbone, *words)
    width = head.spa.attention.in_channels
    for name, title, kind, draw, main, outer in (
        ('spa', 'spatial pool attention', 'first', draw_spatial, MIDDLE - 150, -1),
        ('cpa', 'channel pool attention', 'second', draw_channel, MIDDLE + 150, 1),
    ):
        branch = getattr(head, name)
        edge = MIDDLE + outer * 296
        picture.box((234, edge, 996, MIDDLE + outer * 30), kind=f'{kind}_panel', zorder=1)
        heading = f'{name}: {title}, X = {width} channels'
        picture.text(248, edge - outer * 20, heading, LARGE, ha='left', weight='bold')
        start = MIDDLE + outer * 30
        if branch.conv_in is None:
            picture.line((222, start), (228, start), (228, main), (346, main), heads=(False, False))
        else:
            picture.line((222, start), (228, start), (228, main), (248, main))
            words = [*say_conv(branch.conv_in), f'to {width}']
            picture.box((248, main - 32, 346, main + 32), *words, kind=kind)
        draw(picture, branch.attention, main)
        if branch.conv_out is None:
            picture.line((846, main), (1014, main))
        else:
            words = [*say_conv(branch.conv_out), f'to {head.channels}']
            picture.box((846, main - 32, 956, main + 32), *words, kind=kind)
            picture.line((956, main), (1014, main))
        if branch.conv_seg is not None:
            y = MIDDLE + outer * 254
            start = main if branch.conv_out is None else main + outer * 32
            picture.line((901, start), (901, y - outer * 24))
            words = [*say_conv(branch.conv_seg), classes, 'in training']
            picture.box((846, y - 24, 956, y + 24), ' '.join(words[:2]), words[2], kind=kind)
            picture.line((956, y), (1014, y))
            losses = [f'`{loss}' for loss in losses_of(head, name)]
            picture.box((1014, y - 24, 1166, y + 24), 'loss', *losses, kind='loss')

    concat = head.branch_fusion == 'concat'
    joined = f'concat {2 * head.channels}' if concat else f'sum, {head.channels}'
    picture.box((1014, MIDDLE - 184, 1038, MIDDLE + 184), joined, rotation=90)
    picture.line((1038, MIDDLE), (1050, MIDDLE))
    picture.box(
        (1050, MIDDLE - 40, 1166, MIDDLE + 40), 'dropout', *say_conv(head.conv_seg), classes
    )
    picture.line((1108, MIDDLE - 40), (1108, MIDDLE - 72))
    picture.box((1050, MIDDLE - 120, 1166, MIDDLE - 72), 'prediction', kind='output')
    picture.line((1108, MIDDLE + 40), (1108, MIDDLE + 72))
    output = 'fused' if len(head.loss_weights) > 1 else ''
    losses = [f'`{loss.lstrip(".")}' for loss in losses_of(head, output)]
    picture.box((1050, MIDDLE + 72, 1166, MIDDLE + 120), 'loss', *losses, kind='loss')

    # Where two of these networks would cooperate: at these lines, in each branch.
    for name in head.site_channels:
        left, right, x = TAPS[name]
        y = MIDDLE + (107 if name == 'input' else 0)
        if name == 'input':
            picture.tap((x, MIDDLE + 60), (x, y - 17))
        else:
            for side in (-1, 1):
                picture.tap((x, MIDDLE + side * 150), (x, MIDDLE + side * 17))
        picture.box((left, y - 17, right, y + 17), f'`{name}', kind='site')

    x = picture.key(102, 642, 'site', 'site of CrossCoopDPAHead')
    names = list(head.loss_weights) if output else ['']
    losses = [
        f'{"" if weight == 1 else f"{weight:g} x "}decode.{loss.lstrip(".")}'
        for name, weight in zip(names, head.loss_weights.values(), strict=True)
        for loss in losses_of(head, name)
    ]
    picture.key(x, 642, 'loss', f'loss = {" + ".join(losses)}')
    return picture.figure


DRAWINGS = {CrossCoopASPPHead: draw_pair, DPAHead: draw_dpanet}


def draw(config: str) -> Figure:
    """Draw the model of a config.

    Args:
        config: Config file.

    Returns:
        The picture.

    Raises:
        ValueError: The model is none that can be drawn.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    # On this device tensors have shapes but no memory, and nothing is computed.
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        drawing = DRAWINGS.get(type(model.decode_head))
        if drawing is None:
            raise ValueError(
                f'a decode head of type {type(model.decode_head).__name__} cannot be drawn; take a '
                f'config with {" or ".join(head.__name__ for head in DRAWINGS)}.'
            )
        return drawing(cfg, model, torch.empty(1, 3, *cfg.crop_size))


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', required=True, type=Path, metavar='FILE', help='.svg or .png')
    parser.add_argument('--force', action='store_true', help='replace a file that exists')
    args = parser.parse_args()
    if args.out.suffix not in ('.svg', '.png'):
        parser.error(f'--out takes the name of a .svg or .png file, not {str(args.out)!r}')
    with short_errors():
        if args.out.exists() and not args.force:
            raise FileExistsError(f'{str(args.out)!r} exists; add --force to replace it.')
        figure = draw(args.config)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        # Two runs give the same file.
        matplotlib.rcParams['svg.hashsalt'] = 'mmseg-coop'
        figure.savefig(args.out, metadata={'Date': None} if args.out.suffix == '.svg' else None)
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
