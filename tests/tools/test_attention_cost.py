from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / 'tools/analysis_tools/attention_cost.py'
NAMES = [
    'SPA',
    'SPA-conv',
    'literal-SPA',
    'literal-SPA-conv',
    'NonLocal2d',
    'PAM',
    'APNB',
    'CPA',
    'CAM',
]


def run(*arguments):
    return subprocess.run(
        [sys.executable, '-W', 'ignore', TOOL, *arguments], text=True, capture_output=True
    )


def tables(text):
    """The Markdown tables of a text, each a list of rows."""
    found, rows = [], []
    for line in [*text.splitlines(), '']:
        if line.startswith('|'):
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if set(cells[-1]) - set('-: '):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found


def test_prints_table_1_by_its_own_count():
    done = run('--count', 'ann')
    assert done.returncode == 0, done.stderr
    (table,) = tables(done.stdout)
    assert table[1:] == [
        ['non-local', '96x96', '58.0', '62.8'],
        ['SPA', '96x96', '0.0', '12.3'],
        ['non-local', '256x128', '601.4', '618.5'],
        ['SPA', '256x128', '0.0', '43.6'],
    ]
    assert 'were not counted' in done.stdout


def test_measures_every_attention():
    channels, pixels = 16, 10 * 12
    done = run('--sizes', '10x12', '--channels', '16', '--train', '--repeats', '1')
    assert done.returncode == 0, done.stderr
    costs, ratios = tables(done.stdout)
    assert costs[0] == [
        'attention',
        'parameters',
        'GMAC',
        'pooling GMAC',
        *('forward (ms)', 'forward peak (MiB)'),
        *('training step (ms)', 'training step peak (MiB)'),
    ]
    rows = {name: [float(cell) for cell in cells] for name, *cells in costs[1:]}
    assert list(rows) == NAMES
    for name, (_, gmac, _, *measured) in rows.items():
        assert gmac > 0, name
        assert all(figure >= 0 for figure in measured), name

    spa, conv, cpa = rows['SPA'], rows['SPA-conv'], rows['CPA']
    assert spa[0] == cpa[0] == 1
    projections = 2 * (16 * 2 + 2) + 16 * 16 + 16
    assert conv[0] == rows['literal-SPA-conv'][0] == projections + 1
    # the two products of N x T; queries from N pixels, keys and values from T anchors
    assert spa[1] == pytest.approx(2 * channels * 325 * pixels / 1e9, rel=0.01)
    products = (2 + channels) * 325 * pixels + channels * 2 * pixels + channels * 18 * 325
    assert conv[1] == pytest.approx(products / 1e9, rel=0.01)
    assert cpa[1] == pytest.approx(2 * channels**2 * pixels / 1e9, rel=0.01)
    # the rows of all levels, then the columns of each: 35 and 325 of them, for keys and values
    assert spa[2] == pytest.approx(2 * channels * (35 * pixels + 325 * 12) / 1e9, rel=0.01)
    assert cpa[2] == rows['literal-SPA'][2] == 0

    assert ratios[0][0] == 'ratio'
    assert {'NonLocal2d by SPA', 'literal-SPA-conv by SPA-conv', 'CAM by CPA'} <= {
        row[0] for row in ratios
    }
    # only that there are figures: the times of such small maps say nothing, least of all under load
    assert all(float(cell) >= 0 for row in ratios[1:] for cell in row[1:])


def test_peak_is_that_of_the_tensors_and_what_does_not_fit_is_said():
    done = run(
        *('--sizes', '64x64', '--channels', '64', '--repeats', '1', '--memory', '0.05'),
        *('--only', 'NonLocal2d', 'CAM', 'CPA'),
    )
    assert done.returncode == 0, done.stderr
    rows = {name: cells for name, *cells in tables(done.stdout)[0][1:]}
    # energies and softmax, 64 MiB each, with half as much for the unexpected
    assert rows['NonLocal2d'][3:] == ['does not fit', 'needs about 0.19 GiB']
    # the maps that live at a time, 1 MiB each: the sum beside both of its terms; the sum alone
    assert float(rows['CAM'][4]) == pytest.approx(3, abs=0.1)
    assert float(rows['CPA'][4]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '96x96', '96x0'], "--sizes: takes HEIGHTxWIDTH, such as 96x96, not '96x0'"),
        (['--repeats', '0'], '--repeats is 0 but has to be at least 1'),
        (['--only', 'SPP'], "--only names 'SPP'; choose among SPA, SPA-conv"),
        (['--device', 'cuda:99'], '--device cuda:99 is not there; use cpu'),
    ],
)
def test_wrong_input_ends_with_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
