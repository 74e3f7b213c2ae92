from __future__ import annotations

import csv
import json
import re
import statistics
from functools import partial

import cv2
import pytest
import yaml
from mmseg.datasets import CityscapesDataset, PascalVOCDataset

from mmseg_coop.analysis.paper_tables import last_iteration
from mmseg_coop.errors import DataError
from tests.conftest import ROOT

DATA = yaml.safe_load((ROOT / 'tools/analysis_tools/paper_tables.yml').read_text())
VOC = list(PascalVOCDataset.METAINFO['classes'])
CITYSCAPES = list(CityscapesDataset.METAINFO['classes'])
OURS = 'cross-coop_x65-r101-d16_1xb6-88k_voc12aug-513x513'
R101 = 'deeplabv3plus_r101-d16_1xb6-88k_voc12aug-513x513'
SCRATCH = 'dpanet-scratch_r101-d8_1xb8-112k_cityscapes-768x768'
DPANET = 'dpanet_r101-d8_1xb8-112k_cityscapes-768x768'


@pytest.fixture(scope='session')
def run(tool):
    return partial(tool, 'tools/analysis_tools/paper_tables.py')


def validation(config, outputs, *, classes=VOC, iteration=88000, seed=0, split='val'):
    """A line of iou.jsonl; an output's IoU rises by one from class to class, from its mIoU on."""
    return json.dumps(
        dict(
            split=split,
            iteration=iteration,
            config=config,
            seed=seed,
            output=list(outputs)[-1],
            classes=classes,
            outputs={
                name: dict(mIoU=miou, IoU=[None, *(miou + i for i in range(1, len(classes)))])
                for name, miou in outputs.items()
            },
        )
    )


def write(work_dir, *lines):
    work_dir.mkdir()
    if lines:
        (work_dir / 'iou.jsonl').write_text('\n'.join(lines) + '\n')
    return work_dir


def tables(text):
    """Rows of every table, by heading."""
    found, title = {}, ''
    for line in text.splitlines():
        if line.startswith('#'):
            title = line.lstrip('# ') if line.startswith('# ') else f'{title[:5]} {line[3:10]}'
        elif line.startswith('|') and '---' not in line:
            found.setdefault(title, []).append([cell.strip() for cell in line[1:-1].split('|')])
    return found


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    """Two seeds of the paper's method, a single network, a DPANet."""
    root = tmp_path_factory.mktemp('work_dirs')
    return [
        write(
            root / 'seed1',
            # The best validation is that of the chosen output, the last named one.
            validation(OURS, dict(top=60.0, bottom=50.0, ensemble=62.0), iteration=8000, seed=1),
            validation(OURS, dict(top=40.0, bottom=45.0, ensemble=70.0), iteration=64000, seed=1),
            # Resumed, without a seed of its own, from before the last validation, which is void.
            validation(OURS, dict(top=80.0, bottom=80.0, ensemble=80.0), iteration=80000, seed=1),
            validation(OURS, dict(top=61.0, bottom=60.0, ensemble=69.0), iteration=72000, seed=5),
            validation(OURS, dict(top=61.0, bottom=60.0, ensemble=69.0), iteration=88000, seed=5),
            validation(OURS, dict(top=90.0, bottom=90.0, ensemble=90.0), split='test', seed=1),
        ),
        write(root / 'seed2', validation(OURS, dict(top=43.0, bottom=45.0, ensemble=70.5), seed=2)),
        write(root / 'single', validation(R101, dict(r101=55.5), classes=VOC[::-1])),
        write(root / 'dpanet', validation(SCRATCH, dict(prediction=61.25), classes=CITYSCAPES)),
    ]


def test_measured_stands_beside_printed(work_dirs, tmp_path, run):
    (tmp_path / 'all.png').write_text('old')
    files = ('--csv', tmp_path / 'new/all.csv', '--png', tmp_path / 'all.png', '--force')
    done = run(*work_dirs, *files)
    assert done.returncode == 0, done.stderr
    found = tables(done.stdout)
    assert list(found) == [
        f'{paper} Table {number}' for paper in ('Ikedo', 'Sun a') for number in range(1, 6)
    ]
    header, *rows = found['Ikedo Table 1']
    assert header[:5] == ['Method', 'Network', '', 'Background', 'Bicycle']
    assert header[-2:] == ['Train', 'Mean IoU']
    by_name = {tuple(row[:3]): row[3:] for row in rows}
    paper = by_name['Ours', 'Top', 'paper']
    assert [*paper[:2], *paper[-2:]] == ['95.2', '42.9', '92.0', '81.5']
    # Seeds: mean and sample deviation, of the best validation by the ensemble.
    ours = by_name['Ours', 'Top', 'measured']
    deviation = statistics.stdev([40, 43])
    assert ours[-1] == f'41.50 ± {deviation:.2f} (n = 2)'
    assert ours[0] == '-'  # background occurs nowhere
    assert ours[1] == f'{41.5 + VOC.index("bicycle"):.1f} ± {deviation:.1f}'
    assert by_name['Ours', 'Bottom', 'measured'][-1] == '45.00 ± 0.00 (n = 2)'
    # Not in the paper, but run.
    assert ('Ours', 'Ensemble', 'paper') not in by_name
    assert by_name['Ours', 'Ensemble', 'measured'][-1].startswith('70.25')
    # The order of the run's classes does not matter.
    single = by_name['Single network', 'ResNet-101', 'measured']
    assert single[header.index('Sheep') - 3] == f'{55.5 + VOC[::-1].index("sheep"):.1f}'
    assert single[-1] == '55.50'
    assert by_name['Conventional method', 'Top', 'measured'] == [''] * 21 + ['not run']
    both = 'ResNet-101 + Xception-65'
    for title, place, row in (
        # Beside other authors' figures.
        ('Ikedo Table 2', 1, ['DeepLabV3', 'ResNet-101', '76.5', '-']),
        ('Ikedo Table 2', -1, ['Ours', both, '81.5', ours[-1]]),
        ('Ikedo Table 3', 1, ['DeepLabV3+', 'ResNet-101', '75.1', 'not run']),
        ('Ikedo Table 3', 2, ['DeepLabV3+', 'Xception-65', '76.2', 'not run']),
        ('Ikedo Table 3', 3, ['Ours', both, '78.2', 'not run']),
        ('Ikedo Table 4', -1, ['Ours', both, '78.2', 'not run']),
        ('Ikedo Table 5', 1, ['', '', '80.36', 'not run']),
        ('Ikedo Table 5', 2, ['yes', '', '80.52 (derived)', 'not run']),
        ('Ikedo Table 5', 3, ['yes', 'yes', '81.51 (derived)', ours[-1]]),
        # The cost of attention, which no training measures.
        ('Sun a Table 1', 0, ['Method', 'Input size', 'Params(M), paper', 'FLOPs(G), paper']),
        ('Sun a Table 1', 1, ['NB', '96x96', '610', '58.0']),
        ('Sun a Table 1', 2, ['SPA', '96x96', '0', '0.0']),
        ('Sun a Table 1', 3, ['NB', '256x128', '7797', '601.4']),
        ('Sun a Table 1', 4, ['SPA', '256x128', '0', '0.0']),
        ('Sun a Table 2', -1, ['DPANet', 'ResNet-101', '70.1', 'not run']),
        # One and the same run stands in two tables.
        ('Sun a Table 3', 3, [*found['Sun a Table 3'][3][:-2], '63.91', '61.25']),
        ('Sun a Table 4', 4, [*found['Sun a Table 4'][4][:-2], '62.0', '61.25']),
        ('Sun a Table 5', -1, ['DPANet', 'ResNeSt-101', '68.9', 'not run']),
    ):
        assert found[title][place] == row
    assert 'Connection 1: 80.52 = 80.36 + 0.16 (section 4.5).' in done.stdout
    assert 'Connection 1, Connection 2: 81.51 = 80.36 + 1.15 (section 4.5).' in done.stdout

    lines = list(csv.DictReader((tmp_path / 'new/all.csv').open()))
    (line,) = [
        line
        for line in lines
        if (line['table'], line['config'], line['output']) == ('1', OURS, 'top')
        and line['quantity'] == 'bicycle'
    ]
    assert (line['printed'], line['runs']) == ('42.9', '2')
    assert float(line['measured']) == pytest.approx(41.5 + VOC.index('bicycle'))
    assert float(line['std']) == pytest.approx(deviation, abs=1e-4)
    assert [(line['row'], line['printed']) for line in lines if line['derivation']] == [
        ('Connection 1', '80.52'),
        ('Connection 1, Connection 2', '81.51'),
    ]
    memory = [line['printed'] for line in lines if line['quantity'] == 'Params(M)']
    assert memory == ['610', '0', '7797', '0']
    figure = cv2.imread(str(tmp_path / 'all.png'))
    for color in ((154, 154, 154), (178, 114, 0)):  # printed and measured bars, BGR
        assert (figure == color).all(axis=2).sum() > 1000


@pytest.fixture(scope='module')
def nothing_run(run):
    """The tables without any run, but with a figure of the server."""
    done = run('--server', f'{DPANET}=70.5')
    assert done.returncode == 0, done.stderr
    return tables(done.stdout)


def test_a_paper_can_be_chosen_and_nothing_need_be_run(run, nothing_run):
    assert nothing_run['Sun a Table 2'][-2:] == [
        ['DPANet', 'ResNet-50', '64.2', 'not run'],
        ['DPANet', 'ResNet-101', '70.1', '70.50'],
    ]
    chosen = tables(run('--tables', 'dpanet').stdout)
    assert list(chosen) == [title for title in nothing_run if title.startswith('Sun a')]


def test_rows_name_configs_and_classes_that_exist():
    assert set(DATA['classes']['voc']) == set(VOC)
    assert set(DATA['classes']['cityscapes']) == set(CITYSCAPES)
    configs = {path.stem for path in ROOT.glob('configs/[!_]*/*.py')}
    rows = [
        row
        for paper in DATA['papers'].values()
        for table in paper['tables']
        for row in (*table['rows'], *table.get('further', ()))
    ]
    named = {row['config'] for row in rows if 'config' in row}
    assert named <= configs
    # Whatever is trained on the papers' datasets has a row.
    theirs = {name for name in configs if 'voc12' in name or 'cityscapes' in name}
    assert theirs - named == set()


def test_printed_means_are_those_of_the_printed_classes(nothing_run):
    """As far as they are: two rows of the paper contradict themselves, and a note says so."""
    printed = [row for row in nothing_run['Ikedo Table 1'][1:] if row[2] == 'paper']
    rows = DATA['papers']['cross-coop']['tables'][0]['rows']
    notes = {tuple(row['cells']): row.get('note', '') for row in rows}
    assert len(printed) == len(notes) == 9
    for method, network, _, *figures in printed:
        *classes, mean = map(float, figures)
        exact = statistics.mean(classes)
        note = notes[method, network]
        # Each printed class is right to 0.05, hence their mean, and so is the printed mean.
        if abs(exact - mean) > 0.1:
            assert f'the mean of the printed classes is {exact:.1f}, not {mean}' in note
        else:
            assert not note


@pytest.fixture(scope='module')
def results():
    """Results of all metafiles."""
    return [
        result
        for file in ROOT.glob('configs/*/metafile.yml')
        for model in yaml.safe_load(file.read_text())['Models']
        for result in model.get('Results', ())
    ]


def test_derived_figures_are_the_sums_they_say(results):
    """Of numbers that section 4.5 names."""
    derived = [
        (result['Derivation'], result['Metrics']['mIoU'])
        for result in results
        if result['Source'] == 'derived'
    ]
    rows = DATA['papers']['cross-coop']['tables'][-1]['rows']
    derived += [(row['derivation'], row['printed']) for row in rows[2:]]
    assert len(derived) == 2
    for derivation, figure in derived:
        first, second = re.fullmatch(r'([\d.]+) \+ ([\d.]+) \(section 4.5\)', derivation).groups()
        assert float(first) == 80.36
        assert round(float(first) + float(second), 2) == figure


def test_what_the_papers_do_not_say_is_not_said(results):
    """Of which network 78.2, 80.36 and 80.52 are, and on which split 68.9, 80.36 and 80.52."""
    said = {
        figure: (name, result['Dataset'])
        for result in results
        for name, figure in result['Metrics'].items()
    }
    assert said[78.2] == ('mIoU', 'Cityscapes val')
    assert said[80.36] == said[80.52] == said[68.9] == ('mIoU', 'PASCAL VOC 2012')


def test_every_row_of_the_papers_has_a_printed_figure(nothing_run):
    tables = [table for paper in DATA['papers'].values() for table in paper['tables']]
    for table, rows in zip(tables, nothing_run.values(), strict=True):
        printed = [row for row in rows[1:] if row[2] != 'measured']
        assert len(printed) == len(table['rows'])  # those without a figure would have been dropped
        if 'quantities' not in table:
            mean = -1 if 'classes' in table and any('IoU' in row for row in table['rows']) else -2
            assert all(50 < float(row[mean].split()[0]) < 90 for row in printed)


def test_a_run_that_is_not_finished_is_taken_only_on_demand(tmp_path, run):
    work_dir = write(tmp_path / 'run', validation(R101, dict(r101=55.5), iteration=40000))
    (work_dir / f'{R101}.py').write_text('train_cfg = dict(max_iters=88000)\n')
    done = run(work_dir)
    assert done.returncode == 1
    assert f'{work_dir}: validated at iteration 40000 of 88000' in done.stderr
    done = run(work_dir, '--unfinished')
    assert done.returncode == 0
    assert '55.50' in done.stdout
    assert f'note: {work_dir}: validated at iteration 40000 of 88000' in done.stderr


def test_the_config_of_a_work_dir_is_read_and_not_run(tmp_path, monkeypatch):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['gone'])\ntrain_cfg = dict(max_iters=7)\n")
    assert last_iteration(config) == 7
    monkeypatch.chdir(tmp_path)
    config.write_text("open('marker', 'w').close()\ntrain_cfg = dict(max_iters=7)\n")
    with pytest.raises(DataError, match=r'config.py is not the config that a run leaves'):
        last_iteration(config)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(
    ('scores', 'standing'),
    [
        ([(44000, 50), (88000, 60)], '60.00'),
        ([(44000, 50), (88000, 60), (88000, 58)], '58.00'),  # the last one was repeated
        ([(44000, 70), (88000, 60), (44000, 50), (88000, 58)], '58.00'),  # went on from before
        ([(44000, 50), (66000, 70), (44000, 50), (88000, 58)], '58.00'),  # at another interval
    ],
)
def test_what_was_evaluated_again_counts_as_the_last_time(scores, standing, tmp_path, run):
    lines = [validation(R101, dict(r101=miou), iteration=when) for when, miou in scores]
    done = run(write(tmp_path / 'run', *lines))
    assert done.returncode == 0, done.stderr
    measured = re.findall(r'\| (\d\d\.00) \|', done.stdout)
    assert set(measured) == {standing}


GOOD = validation(OURS, dict(top=60.0, bottom=60.0, ensemble=60.0))


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ([''], 'line 1 of .*iou.jsonl is cut short or damaged'),
        ([GOOD, GOOD[:200]], 'line 2 of .*iou.jsonl is cut short or damaged'),
        ([GOOD.replace('null, ', '', 1)], "output 'top' has not one IoU a class"),
        ([GOOD.replace('"seed": 0, ', '')], 'it lacks seed'),
        (
            [validation(OURS, dict(top=60.0, ensemble=61.0), classes=CITYSCAPES)],
            r"not those of table 1: lacking \['aeroplane', .* unknown \['building'",
        ),
        ([validation(OURS, dict(left=60.0))], "table 1 needs output 'top' of cross-coop_x65"),
        (
            [GOOD, validation(OURS, dict(top=60.0), iteration=8000, seed=7)],
            'holds several runs: .* seed 0, then .* seed 7',
        ),
        ([f'{GOOD[:-1]}, "images_left_out": 2}}'], 'at iteration 88000 left out 2 images'),
    ],
)
def test_bad_runs_are_named_and_nothing_is_written(lines, message, tmp_path, run, work_dirs):
    (tmp_path / 'old.csv').write_text('old')
    write(tmp_path / 'bad', *lines)
    files = ('--csv', 'old.csv', '--png', 'new.png', '--force')
    done = run(work_dirs[0], 'bad', *files, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, '')
    (line,) = done.stderr.splitlines()
    assert re.search(f'^error: .*{message}', line), line
    assert 'bad' in line
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ['old.csv']
    assert (tmp_path / 'old.csv').read_text() == 'old'


@pytest.mark.parametrize(
    ('lines', 'reason'),
    [
        ([], 'it holds no iou.jsonl'),
        ([validation(OURS, dict(top=60.0), split='test')], 'its iou.jsonl holds no validation'),
        ([validation(OURS[:-3], dict(top=60.0))], f'no table has a row .* Did you mean {OURS}'),
    ],
)
def test_foreign_folders_are_left_out_with_a_line(lines, reason, tmp_path, run, work_dirs):
    done = run(write(tmp_path / 'foreign', *lines), work_dirs[2])
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert re.search(f'^note: {tmp_path}/foreign is left out: {reason}', line), line
    assert 'measured' in done.stdout
    assert '| 55.50 |' in done.stdout


def test_the_folder_of_a_study_stands_for_its_runs(tmp_path, run):
    (tmp_path / 'single').mkdir()
    (tmp_path / 'study.json').write_text('{}')
    for seed, miou in enumerate((50.0, 52.0)):
        write(tmp_path / f'single/seed_{seed}', validation(R101, dict(r101=miou), seed=seed))
    assert '| 51.00 ± 1.41 (n = 2) |' in run(tmp_path).stdout


def test_a_run_is_given_once(run, work_dirs):
    done = run(work_dirs[2], work_dirs[2])
    assert (done.returncode, done.stdout) == (1, '')
    assert "single' is given twice" in done.stderr
