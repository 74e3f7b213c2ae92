"""Measures what cooperation does in a trained model: paths switched off, likeness, gains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmseg.models.utils import resize
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.cooperation import Cooperation
from .evaluate import class_iou, evaluate, open_subject
from .report import claim, grouped_bars, plt, save
from .tables import markdown, write_csv

NOTHING, EVERYTHING = '(nothing)', '(all)'
FILES = ('cooperation.png', 'cooperation.md', 'sites.csv', 'cka.csv', 'classes.csv')


class LinearCKA:
    """Linear CKA of two feature maps, summed up over images, of each at some random positions.

    Example:
        >>> import torch
        >>> cka, x = LinearCKA(positions=16), torch.rand(2, 8, 4, 4)
        >>> cka.update(x, 3 * x.flip(1))
        >>> round(cka.value(), 6)
        1.0
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.examples = 0
        self.channels = (0, 0)
        # Of the channels of both maps; differences of large sums follow: double precision.
        self._sum = self._product = torch.zeros((), dtype=torch.double)
        self._generator = torch.Generator().manual_seed(0)

    @property
    def is_biased(self) -> bool:
        """Whether there are fewer examples than channels."""
        return self.examples < max(self.channels)

    def update(self, one: Tensor, other: Tensor) -> None:
        """Add a batch, ``(N, C, H, W)`` and ``(N, D, H', W')``; the larger map is resized."""
        smaller = min(one, other, key=lambda x: x.shape[2] * x.shape[3]).shape[2:]
        chosen = torch.randperm(smaller.numel(), generator=self._generator)[: self.positions]
        maps = torch.cat(
            [resize(x, size=smaller, mode='bilinear', align_corners=False) for x in (one, other)],
            dim=1,
        )
        x = maps.flatten(2)[:, :, chosen.to(maps.device)].mT.flatten(0, 1).double().cpu()
        self.channels = one.shape[1], other.shape[1]
        self.examples += len(x)
        self._sum = self._sum + x.sum(0)
        self._product = self._product + x.T @ x

    def value(self) -> float:
        """``|Y'X|^2 / (|X'X| |Y'Y|)`` of the centred examples X and Y, Frobenius norms.

        NaN where a network's features do not vary.
        """
        centred = self._product - torch.outer(self._sum, self._sum) / self.examples
        (xx, xy), (_, yy) = (rows.split(self.channels, 1) for rows in centred.split(self.channels))
        if self.examples < 2 or min(xx.norm(), yy.norm()) <= 1e-12 * self._product.norm():
            return float('nan')
        return float(xy.norm() ** 2 / (xx.norm() * yy.norm()))


Likeness = dict[tuple[str, int, str], tuple[LinearCKA, LinearCKA]]


@contextmanager
def compared(
    cooperation: Cooperation, networks: Sequence[str], positions: int
) -> Iterator[Likeness]:
    """Compare the networks' features wherever they could exchange, while the model runs.

    Yields CKA before and after the exchange, by site, layer and pair of networks.
    """
    likeness: Likeness = {}
    layers = cooperation.layers
    unconnected = [site for site in layers if site not in cooperation.paths]
    with ExitStack() as cleanup:
        for site in unconnected:  # nothing is exchanged there, but a hook sees the features
            cooperation.paths[site] = nn.ModuleList(nn.Identity() for _ in range(layers[site]))
            cleanup.callback(cooperation.paths.pop, site)
        for site, layer in [(name, index) for name in layers for index in range(layers[name])]:
            meters = {}
            for a, b in itertools.combinations(networks, 2):
                meters[a, b] = LinearCKA(positions), LinearCKA(positions)
                likeness[site, layer, f'{a} and {b}'] = meters[a, b]

            def compare(_: Any, inputs: Any, outputs: Any, meters: Any = meters) -> None:
                for (a, b), (before, after) in meters.items():
                    before.update(inputs[0][a], inputs[0][b])
                    after.update(outputs[a], outputs[b])

            path = cooperation.paths[site][layer]
            cleanup.callback(path.register_forward_hook(compare).remove)
        yield likeness


@contextmanager
def switched_off(cooperation: Cooperation, sites: Sequence[str]) -> Iterator[None]:
    """Let every network go on with its own features at some sites."""
    paths = {site: cooperation.paths.pop(site) for site in sites}
    try:
        yield
    finally:
        cooperation.paths.update(paths)


def number(value: float, digits: int = 2, sign: str = '') -> str:
    """A number for a table."""
    if np.isnan(value):
        return '-'
    return f'{round(value, digits) + 0.0:{sign}.{digits}f}'  # of -0.0 the sum makes 0.0


def draw(
    title: str,
    miou: Mapping[str, Mapping[str, float]],
    cka: Mapping[str, tuple[float, float]],
    classes: Sequence[str],
    gains: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    """Draw the page; ``cka`` is the likeness before and after the exchange, by place."""
    figure, axes = plt.subplot_mosaic([[0, 1], [2, 2]], figsize=(11, 9), layout='constrained')
    figure.suptitle(title)
    base = miou[NOTHING]
    sites = [site for site in miou if site != NOTHING]
    drops = {f'{o} ({base[o]:.1f})': [miou[site][o] - base[o] for site in sites] for o in base}
    grouped_bars(axes[0], drops, sites)
    axes[0].tick_params(axis='x', rotation=20)
    axes[0].set(ylabel='change of mIoU (points)', title='paths of a site switched off')
    if sites:
        axes[0].legend(title='output (mIoU with all paths)', fontsize=8)
    else:
        axes[0].text(0.5, 0.5, 'the model has no paths', ha='center', transform=axes[0].transAxes)

    places = np.arange(len(cka))
    before, after = np.array(list(cka.values()), float).T
    axes[1].hlines(places, before, after, color='grey', linewidth=1)
    axes[1].plot(before, places, 'o', label='before the exchange')
    axes[1].plot(after, places, 'D', markersize=5, label='after it')
    axes[1].set_yticks(places, list(cka))
    axes[1].invert_yaxis()
    star = ' (* few examples: biased towards 1)' if any('*' in place for place in cka) else ''
    axes[1].set(xlim=(-0.03, 1.03), xlabel=f'linear CKA{star}')
    axes[1].set_title("how alike the networks' features are")
    axes[1].grid(axis='x', alpha=0.3)
    axes[1].legend(fontsize=8, loc='lower left')

    grouped_bars(axes[2], gains, classes)
    plt.setp(axes[2].get_xticklabels(), rotation=45, ha='right')
    # Differences of hundredths of a point are noise, and look like it.
    limit = max(1, 1.1 * np.nanmax(np.abs(list(gains.values()))))
    axes[2].set(ylabel='difference of IoU (points)', title='gain in each class')
    axes[2].set_ylim(-limit, limit)
    axes[2].grid(axis='y', alpha=0.3)
    axes[2].legend(fontsize=8)
    for axis in (axes[0], axes[2]):
        axis.axhline(0, color='black', linewidth=0.8)
    save(figure, path)


def analyze_cooperation(
    config: str,
    checkpoint: str,
    *,
    split: str = 'test',
    max_images: int | None = None,
    cka_positions: int = 64,
    out: str | None = None,
    force: bool = False,
    **options: Any,
) -> None:
    """Write and print what the paths of a trained model do.

    Args:
        config: Config file.
        checkpoint: Checkpoint file.
        split: Data to evaluate it on. Defaults to ``'test'``.
        max_images: Stop after that many images. Defaults to None: all.
        cka_positions: Positions of every image at which features are compared. Defaults to 64.
        out: Folder. Defaults to None: ``analyze_cooperation`` in the work directory of the config.
        force: Whether to replace files. Defaults to False.
        **options: As of :func:`open_subject`.

    Raises:
        ConfigError: The model has no networks that could cooperate.
        CoopError: See :func:`open_subject`.
        OSError: A file cannot be read, or would be replaced.
    """
    subject = open_subject(config, checkpoint, split=split, **options)
    head: Any = getattr(subject.model, 'decode_head', None)
    cooperation = getattr(head, 'cooperation', None)
    if not isinstance(cooperation, Cooperation) or len(head.network_names) < 2:
        raise ConfigError(
            f'{config} has no networks that could cooperate; give a config of a '
            'CrossCoopASPPHead or CrossCoopDPAHead with two networks or more.'
        )
    folder = Path(out or Path(subject.cfg.work_dir, 'analyze_cooperation'))
    claim(*(folder / name for name in FILES), force=force)

    names = head.network_names
    paths = cooperation.paths.items()
    connected = [site for site, layers in paths if any(layer.senders_of for layer in layers)]
    off = {site: [site] for site in connected}
    if len(connected) > 1:
        off[EVERYTHING] = connected
    with compared(cooperation, head.exchanging, cka_positions) as likeness:
        matrices = {NOTHING: evaluate(subject, max_images, 'all paths')}
    for title, sites in off.items():
        with switched_off(cooperation, sites):
            matrices[title] = evaluate(subject, max_images, f'without {", ".join(sites)}')
    iou = {site: {o: class_iou(m) for o, m in each.items()} for site, each in matrices.items()}
    miou = {site: {o: float(np.nanmean(x)) for o, x in each.items()} for site, each in iou.items()}
    base = iou[NOTHING]
    site_rows = [['switched off', *base, *(f'change of {output}' for output in base)]]
    for site, scores in miou.items():
        changes = [number(scores[o] - miou[NOTHING][o], sign='+') for o in base]
        site_rows.append([site, *map(number, scores.values()), *changes])

    cka_rows = [['site', 'layer', 'networks', 'before', 'after', 'examples']]
    cka = {}
    for (site, layer, pair), meters in likeness.items():
        few = '*' if meters[0].is_biased else ''
        before, after = (meter.value() for meter in meters)
        figures = number(before, 3), number(after, 3), f'{meters[0].examples}{few}'
        cka_rows.append([site, str(layer), pair, *figures])
        place = f'{site} {layer}{few}' if cooperation.layers[site] > 1 else f'{site}{few}'
        cka[f'{place}: {pair}' if len(names) > 2 else place] = before, after

    gains = {f'{a} - {b}': base[a] - base[b] for a, b in itertools.combinations(names, 2)}
    best = np.max([base[name] for name in names], axis=0)
    gains['ensemble - best network'] = base['ensemble'] - best
    class_rows = [['class', *base, *gains]]
    for index, name in enumerate(subject.classes):
        values = [number(each[index]) for each in base.values()]
        class_rows.append([name, *values, *(number(g[index], sign='+') for g in gains.values())])

    count = min(max_images or len(subject.loader.dataset), len(subject.loader.dataset))
    title = f'{Path(config).stem}\n{Path(checkpoint).name}, {count} images of {split}'
    page = '# {}\n\n{}\n'.format(*title.split('\n'))
    for headline, rows, file in (
        ('mIoU with the paths of a site switched off', site_rows, 'sites.csv'),
        ("Linear CKA of the networks' features", cka_rows, 'cka.csv'),
        ('IoU and gain in each class', class_rows, 'classes.csv'),
    ):
        page += f'\n## {headline}\n\n{markdown(rows)}\n'
        write_csv(folder / file, rows)
    if any('*' in place for place in cka):
        page += '\n\\* fewer examples than channels: biased towards 1.\n'
    (folder / 'cooperation.md').write_text(page)
    draw(title, miou, cka, subject.classes, gains, folder / 'cooperation.png')
    print(f'{page}\nwritten to {folder}')
