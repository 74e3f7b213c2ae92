"""Write the tables of configs/*/README.md from the metafiles.

With --check nothing is written; the exit code is 1 where a table is stale.

A metafile names for every config its parameters and multiply-accumulates at a stated input
size, as tools/analysis_tools/get_flops.py counts them, and results with their source: `paper` for a
figure printed in the paper, `derived` for one that the paper's text leads to, as `Derivation` says,
`converted` for one measured with converted weights, `ours` for the mean of trainings of this
project, with its Deviations over Seeds, the Commit and the Hardware.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmseg_coop_cli import Parser, program

ROOT = Path(__file__).resolve().parents[2]

BEGIN, END = '<!-- table: begin (tools/misc/make_tables.py) -->', '<!-- table: end -->'
SOURCES = ('paper', 'derived', 'converted', 'ours')
TRAINING = ('Deviations', 'Seeds', 'Commit', 'Hardware')


def table(metafiles: Iterable[Path], readme: Path) -> str:
    """Table of metafiles.

    Args:
        metafiles: The files.
        readme: Where the table goes, which the links start from.

    Returns:
        Markdown, a row a config.

    Raises:
        ConfigError: A path does not exist, a result has an unknown source, is derived without
            saying from what, or is ours without saying how.
    """
    from mmseg_coop.analysis.tables import markdown, read_models
    from mmseg_coop.errors import ConfigError

    rows = [['config', 'data', 'parameters (M)', 'GMAC (input)', 'mIoU', 'source']]
    for metafile, model in read_models(metafiles):
        config = ROOT / model['Config']
        if not config.is_file():
            raise ConfigError(f'{metafile}: config {model["Config"]!r} does not exist.')
        metadata = model['Metadata']
        metrics, sources, data = [], [], config.stem.split('_')[-1].split('-')[0]
        for result in model.get('Results', []):
            if result['Source'] not in SOURCES:
                raise ConfigError(
                    f'{metafile}: source {result["Source"]!r} of {model["Name"]} is none of '
                    f'{", ".join(SOURCES)}.'
                )
            derivation = result.get('Derivation')
            if (result['Source'] == 'derived') != (derivation is not None):
                raise ConfigError(
                    f'{metafile}: a result of {model["Name"]} is {result["Source"]!r} with '
                    f'Derivation {derivation!r}; what is derived says from what, and nothing else.'
                )
            missing = [key for key in TRAINING if key not in result]
            if result['Source'] == 'ours' and missing:
                raise ConfigError(
                    f'{metafile}: a result of {model["Name"]} is ours and lacks '
                    f'{", ".join(missing)}.'
                )
            spread = result.get('Deviations', {})
            sources.append(f'derived: {derivation}' if derivation else result['Source'])
            data = result['Dataset']
            for name, value in result['Metrics'].items():
                text = f'{name.removesuffix("mIoU").strip()} {value}'.strip()
                metrics.append(text + (f' ± {spread[name]}' if name in spread else ''))
        link = os.path.relpath(config, readme.parent)
        cost = [f'{metadata["Parameters (M)"]:.2f}']
        cost.append(f'{metadata["GMAC"]:.1f} ({metadata["Input size"]})')
        cells = [f'[{config.stem}]({link})', data, *cost, ', '.join(metrics) or 'not measured']
        rows.append([*cells, ', '.join(sources)])
    return markdown(rows, right=(2, 3))


def main(argv: Sequence[str] | None = None) -> None:
    """Write or check the tables."""
    parser = Parser(__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, fail where stale')
    check = parser.parse_args(argv).check

    from mmseg_coop.errors import ConfigError

    metafiles = sorted(ROOT.glob('configs/*/metafile.yml'))
    stale = []
    for metafile in metafiles:
        readme = metafile.with_name('README.md')
        old = readme.read_text('utf-8')
        rows = table([metafile], readme)
        before, begin, rest = old.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ConfigError(f'{readme}: the marks {BEGIN!r} and {END!r} are missing.')
        new = f'{before}{BEGIN}\n\n{rows}\n\n{END}{after}'
        if new != old:
            stale.append(str(readme.relative_to(ROOT)))
            if not check:
                readme.write_text(new, 'utf-8')
    if check and stale:
        raise ConfigError(f'stale tables in {", ".join(stale)}; run tools/misc/make_tables.py')
    print(f'{"checked" if check else "wrote"} the tables; {len(stale)} changed')


if __name__ == '__main__':
    program(main)
