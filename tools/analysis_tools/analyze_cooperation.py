"""What cooperation does in a trained model, on one page.

Measures the mIoU of every output with the paths of one site switched off, and of all: how far the
trained networks rely on them, which is not how they would do if trained without. Then how alike the
networks' features are at each site before and after the exchange, and what each network gains over
the other in each class.

The likeness is linear CKA (Kornblith et al., ICML 2019, section 3): 1 for features equal up to
rotation and scale, 0 for features without common linear part. Each sampled position of each image
is one example; with fewer examples than channels it is biased towards 1, which a star marks.

Writes cooperation.png, cooperation.md, and the tables as sites.csv, cka.csv and classes.csv.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.models.utils import resize
from torch import Tensor, nn

from mmseg_coop.analysis.evaluate import add_arguments, class_iou, evaluate, load, parse
from mmseg_coop.analysis.report import claim, plt, save, write_csv
from mmseg_coop.analysis.tables import markdown
from mmseg_coop.models.cooperation import Cooperation
from mmseg_coop_cli import short_errors

NOTHING, EVERYTHING = '(nothing)', '(all)'
FILES = ('cooperation.png', 'cooperation.md', 'sites.csv', 'cka.csv', 'classes.csv')


class LinearCKA:
    """Linear CKA of two feature maps, summed up over images.

    Args:
        positions: Positions sampled of every image.

    Example:
        >>> cka, x = LinearCKA(positions=16), torch.rand(2, 8, 4, 4)
        >>> cka.update(x, 3 * x.flip(1))
        >>> round(cka.value(), 6)
        1.0
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.examples = 0
        self.channels = 0
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def update(self, one: Tensor, other: Tensor) -> None:
        """Add a batch.

        Args:
            one: ``(N, C, H, W)``.
            other: ``(N, D, H', W')``; the larger map is resized to the smaller.
        """
        smaller = min(one, other, key=lambda x: x.shape[2] * x.shape[3]).shape[2:]
        chosen = torch.randperm(smaller.numel(), generator=self._generator)[: self.positions]
        x, y = (self._examples(feature, smaller, chosen) for feature in (one, other))
        sums, products = [x.sum(0), y.sum(0)], [x.T @ y, x.T @ x, y.T @ y]
        if self.examples:
            sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
            products = [a + b for a, b in zip(self._products, products, strict=True)]
        self._sums, self._products = sums, products
        self.examples += len(x)
        self.channels = max(x.shape[1], y.shape[1])

    @staticmethod
    def _examples(feature: Tensor, size: torch.Size, chosen: Tensor) -> Tensor:
        """Examples ``(N * positions, C)`` of a map ``(N, C, H, W)``."""
        if feature.shape[2:] != size:
            feature = resize(feature, size=size, mode='bilinear', align_corners=False)
        # Differences of large sums follow: double precision.
        return feature.flatten(2)[:, :, chosen.to(feature.device)].mT.flatten(0, 1).double().cpu()

    def value(self) -> float:
        """``|Y'X|^2 / (|X'X| |Y'Y|)`` of the centred examples X and Y, Frobenius norms.

        NaN where a network's features do not vary.
        """
        x, y = self._sums
        xy, xx, yy = self._products
        n = self.examples
        cross, own, others = (
            (product - torch.outer(a, b) / n).norm()
            for product, (a, b) in ((xy, (x, y)), (xx, (x, x)), (yy, (y, y)))
        )
        if n < 2 or min(own, others) <= 1e-12 * (xx.norm() + yy.norm()):
            return float('nan')
        return float(cross**2 / (own * others))


Likeness = dict[tuple[str, int, str], tuple[LinearCKA, LinearCKA]]


@contextmanager
def compared(
    cooperation: Cooperation, layers: Mapping[str, int], networks: Sequence[str], positions: int
) -> Iterator[Likeness]:
    """Compare the networks' features wherever they could exchange, while the model runs.

    Args:
        cooperation: The paths of the model.
        layers: Layers of every site, those without paths among them.
        networks: Names of the networks.
        positions: Positions sampled of every image.

    Yields:
        CKA before and after the exchange, by site, layer and pair of networks.
    """
    likeness: Likeness = {}
    unconnected = [site for site in layers if site not in cooperation.paths]
    for site in unconnected:  # nothing is exchanged there, but a hook sees the features
        cooperation.paths[site] = nn.ModuleList(nn.Identity() for _ in range(layers[site]))
    handles = []
    for site, layer in [(name, index) for name in layers for index in range(layers[name])]:
        meters = {
            pair: (LinearCKA(positions), LinearCKA(positions))
            for pair in itertools.combinations(networks, 2)
        }
        likeness.update({(site, layer, f'{a} and {b}'): meter for (a, b), meter in meters.items()})

        def hook(
            _: nn.Module,
            inputs: tuple[dict[str, Tensor]],
            outputs: dict[str, Tensor],
            meters: dict[tuple[str, str], tuple[LinearCKA, LinearCKA]] = meters,
        ) -> None:
            for (a, b), (before, after) in meters.items():
                before.update(inputs[0][a], inputs[0][b])
                after.update(outputs[a], outputs[b])

        handles.append(cooperation.paths[site][layer].register_forward_hook(hook))
    try:
        yield likeness
    finally:
        for handle in handles:
            handle.remove()
        for site in unconnected:
            del cooperation.paths[site]


@contextmanager
def switched_off(cooperation: Cooperation, sites: Sequence[str]) -> Iterator[None]:
    """Let every network go on with its own features at some sites."""
    paths = {site: cooperation.paths.pop(site) for site in sites}
    try:
        yield
    finally:
        cooperation.paths.update(paths)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        '--cka-positions', type=int, default=64, metavar='N', help='of every image; default: 64'
    )
    args = parse(parser)
    if args.cka_positions < 1:
        parser.error(f'--cka-positions has to be at least 1, not {args.cka_positions}')
    return args


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number for a table."""
    if np.isnan(value):
        return '-'
    value = round(value, digits) + 0.0  # of -0.0 it makes 0.0
    return f'{value:{"+" if sign else ""}.{digits}f}'


def draw(
    title: str,
    outputs: Sequence[str],
    miou: dict[str, np.ndarray],
    cka: list[tuple[str, float, float]],
    classes: Sequence[str],
    gains: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Draw the page.

    Args:
        title: Headline.
        outputs: Names of the outputs.
        miou: mIoU of every output, by what is switched off.
        cka: Likeness before and after the exchange, by place.
        classes: Names of the classes.
        gains: Difference of IoU of every class, by pair of networks.
        path: File to write.
    """
    figure = plt.figure(figsize=(11, 9), layout='constrained')
    grid = figure.add_gridspec(2, 2)
    figure.suptitle(title)

    axis = figure.add_subplot(grid[0, 0])
    sites = [site for site in miou if site != NOTHING]
    width = 0.8 / len(outputs)
    for index, output in enumerate(outputs):
        drop = [miou[site][index] - miou[NOTHING][index] for site in sites]
        bars = np.arange(len(sites)) + (index - (len(outputs) - 1) / 2) * width
        axis.bar(bars, drop, width, label=f'{output} ({miou[NOTHING][index]:.1f})')
    axis.axhline(0, color='black', linewidth=0.8)
    axis.set_xticks(range(len(sites)), sites, rotation=20)
    axis.set_ylabel('change of mIoU (points)')
    axis.set_title('paths of a site switched off')
    if sites:
        axis.legend(title='output (mIoU with all paths)', fontsize=8)
    else:
        axis.text(0.5, 0.5, 'the model has no paths', ha='center', transform=axis.transAxes)

    axis = figure.add_subplot(grid[0, 1])
    places = np.arange(len(cka))
    before, after = np.array([values for _, *values in cka], float).T
    axis.hlines(places, before, after, color='grey', linewidth=1)
    axis.plot(before, places, 'o', label='before the exchange')
    axis.plot(after, places, 'D', markersize=5, label='after it')
    axis.set_yticks(places, [name for name, *_ in cka])
    axis.invert_yaxis()
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel(
        'linear CKA (* few examples: biased towards 1)'
        if any('*' in name for name, *_ in cka)
        else 'linear CKA'
    )
    axis.set_title("how alike the networks' features are")
    axis.grid(axis='x', alpha=0.3)
    axis.legend(fontsize=8, loc='lower left')

    axis = figure.add_subplot(grid[1, :])
    width = 0.8 / len(gains)
    for index, (pair, gain) in enumerate(gains.items()):
        bars = np.arange(len(classes)) + (index - (len(gains) - 1) / 2) * width
        axis.bar(bars, gain, width, label=pair)
    axis.axhline(0, color='black', linewidth=0.8)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha='right')
    axis.set_ylabel('difference of IoU (points)')
    axis.set_title('gain in each class')
    # Differences of hundredths of a point are noise, and look like it.
    largest = np.nanmax(np.abs(list(gains.values())))
    axis.set_ylim(-max(1, 1.1 * largest), max(1, 1.1 * largest))
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    with short_errors():
        subject = load(args)
        head: Any = getattr(subject.model, 'decode_head', None)
        cooperation = getattr(head, 'cooperation', None)
        if not isinstance(cooperation, Cooperation) or len(head.network_names) < 2:
            raise ValueError(
                f'{args.config} has no networks that could cooperate; give a config of a '
                'CrossCoopASPPHead or CrossCoopDPAHead with two networks or more.'
            )
        out_dir = args.out_dir or Path(subject.cfg.work_dir, 'analyze_cooperation')
        files = {name: out_dir / name for name in FILES}
        claim(*files.values(), force=args.force)

    names = head.network_names
    layers = {site: len(c) for site, c in head.networks[names[0]].site_channels.items()}
    connected = [
        site
        for site, paths in cooperation.paths.items()
        if any(exchange.senders_of for exchange in paths)
    ]
    off = {NOTHING: [], **{site: [site] for site in connected}}
    if len(connected) > 1:
        off[EVERYTHING] = connected

    iou: dict[str, dict[str, np.ndarray]] = {}
    with compared(cooperation, layers, names, args.cka_positions) as likeness:
        matrices = evaluate(subject, args.max_images, 'all paths')
        iou[NOTHING] = {name: class_iou(matrix) for name, matrix in matrices.items()}
    for title, sites in off.items():
        if sites:
            with switched_off(cooperation, sites):
                matrices = evaluate(subject, args.max_images, f'without {", ".join(sites)}')
            iou[title] = {name: class_iou(matrix) for name, matrix in matrices.items()}

    outputs = list(iou[NOTHING])
    miou = {site: np.array([np.nanmean(iou[site][o]) for o in outputs]) for site in off}
    site_rows = [
        ['switched off', *outputs, *(f'change of {output}' for output in outputs)],
        *(
            [
                site,
                *(number(value) for value in values),
                *(number(value, sign=True) for value in values - miou[NOTHING]),
            ]
            for site, values in miou.items()
        ),
    ]

    cka_rows = [['site', 'layer', 'networks', 'before', 'after', 'examples']]
    cka = []
    for (site, layer, pair), (before, after) in likeness.items():
        few = '*' if before.examples < before.channels else ''
        values = before.value(), after.value()
        cka_rows.append(
            [site, str(layer), pair, *(number(v, 3) for v in values), f'{before.examples}{few}']
        )
        place = f'{site} {layer}' if layers[site] > 1 else site
        cka.append((f'{place}{few}' + (f': {pair}' if len(names) > 2 else ''), *values))

    base = iou[NOTHING]
    gains = {f'{a} - {b}': base[a] - base[b] for a, b in itertools.combinations(names, 2)}
    best = np.max([base[name] for name in names], axis=0)
    gains['ensemble - best network'] = base['ensemble'] - best
    class_rows = [['class', *outputs, *gains]]
    for index, name in enumerate(subject.classes):
        class_rows.append(
            [
                name,
                *(number(base[output][index]) for output in outputs),
                *(number(gain[index], sign=True) for gain in gains.values()),
            ]
        )

    count = min(args.max_images or len(subject.loader.dataset), len(subject.loader.dataset))
    title = (
        f'{Path(args.config).stem}\n{Path(args.checkpoint).name}, {count} images of {args.split}'
    )
    page = f'# {title}\n'.replace('\n', '\n\n', 1)
    for headline, rows, name in (
        ('mIoU with the paths of a site switched off', site_rows, 'sites.csv'),
        ("Linear CKA of the networks' features", cka_rows, 'cka.csv'),
        ('IoU and gain in each class', class_rows, 'classes.csv'),
    ):
        page += f'\n## {headline}\n\n{markdown(rows)}\n'
        write_csv(files[name], rows)
    if any(row[-1].endswith('*') for row in cka_rows):
        page += '\n\\* fewer examples than channels: biased towards 1.\n'
    files['cooperation.md'].write_text(page)
    draw(title, outputs, miou, cka, subject.classes, gains, files['cooperation.png'])
    print(page)
    print(f'written to {out_dir}')


if __name__ == '__main__':
    main()
