"""Studies. Their runs take place in this process, but for the test that kills it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import statistics
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from mmseg_coop.analysis import study_queue, study_results
from mmseg_coop.analysis.study import Row, read_study
from mmseg_coop.analysis.study_queue import Queue, Task, display
from tests.conftest import ROOT, Here
from tests.processes import script, start

STUDIES = ROOT / 'configs/studies'
MINI = 'cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128'


@pytest.fixture(scope='module')
def content(mini_data, run_options):
    """A study of two rows and two seeds, four iterations a run."""
    prefix = 'test_dataloader.dataset.data_prefix'
    split = f'{prefix}.img_path=img_dir/test {prefix}.seg_map_path=ann_dir/test'
    return dict(
        title='A miniature',
        compare='ours',
        seeds=[0, 1],
        cfg_options=' '.join([*run_options(mini_data())[1:], split]),
        rows=[
            dict(label='ours', config=MINI),
            dict(label='No paths', config=MINI, cfg_options='model.decode_head.topology=none'),
        ],
    )


@pytest.fixture(scope='module')
def study(tool):
    """Run a study in a folder; returns what it said, and the folders in which it started a process.

    ``change`` may change the command of a process, and return another exit code for it.
    """

    def call(folder, content, *words, change=lambda command: None):
        started = []

        def spawn(command, env, log):
            place = Path(command[command.index('--work-dir') + 1])
            started.append(place.relative_to('work_dirs/mini').as_posix())
            code = change(command)
            return Here(tool, command, log, code)

        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / 'mini.yml').write_text(text)
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(study_queue, 'spawn', spawn)
            patch.setattr(study_queue, 'SECONDS', 0)
            patch.setattr(study_results, 'ROUNDS', 1)
            done = tool('tools/run_study.py', 'mini.yml', *words, cwd=folder)
        signal.signal(signal.SIGTERM, handler)
        return done, started

    return call


@pytest.fixture(scope='module')
def finished(study, content, tmp_path_factory):
    """Folder of a study that was run and tested, and what it said."""
    folder = tmp_path_factory.mktemp('finished')
    done, started = study(folder, content, '--test')
    assert done.returncode == 0, done.stderr
    runs = [f'{row}/seed_{seed}' for seed in (0, 1) for row in ('ours', 'no-paths')]
    assert sorted(started) == sorted([*runs, *(f'{run}/test' for run in runs)])
    return folder, done.stdout


def evaluations(folder):
    return [json.loads(line) for line in (folder / 'iou.jsonl').read_text().splitlines()]


def best(folder):
    return max(evaluations(folder), key=lambda line: line['outputs']['ensemble']['mIoU'])


def test_means_deviations_and_differences_are_those_of_the_runs(finished, rows):
    folder, printed = finished
    out = folder / 'work_dirs/mini'
    table = (out / 'results.md').read_text()
    assert table in printed
    header, *lines = rows(table)
    assert header == [
        *('row', 'output', 'runs', 'val mIoU', 'difference to ours (ensemble)'),
        *('test mIoU', 'difference to ours (ensemble)'),
        *('parameters (M)', 'GMAC', 'inference (ms)', 's/iteration'),
    ]
    found = {tuple(line[:2]): line[2:] for line in lines}
    outputs = ('top', 'bottom', 'ensemble')
    assert list(found) == [(row, name) for row in ('ours', 'No paths') for name in outputs]
    for (row, name), (count, *cells) in found.items():
        assert count == '2'
        expected = []
        for read in (best, lambda run: evaluations(run / 'test')[0]):
            own, ours = (
                [read(out / folder / f'seed_{s}')['outputs'][key]['mIoU'] for s in (0, 1)]
                for folder, key in ((row.lower().replace(' ', '-'), name), ('ours', 'ensemble'))
            )
            expected.append(f'{statistics.mean(own):.2f} ± {statistics.stdev(own):.2f}')
            pairs = [a - b for a, b in zip(own, ours, strict=True)]
            mean = f'{statistics.mean(pairs):+.2f}'.replace('+0.00', '0.00')
            difference = f'{mean} ± {statistics.stdev(pairs):.2f}'
            expected.append('' if (row, name) == ('ours', 'ensemble') else difference)
        assert cells[:4] == expected
    latex = (out / 'results.tex').read_text()
    assert latex.count(r'$\pm$') == sum(cell.count('±') for line in lines for cell in line)
    assert latex.count('&') == 10 * len(rows(table))
    image = cv2.imread(str(out / 'results.png'))
    assert (image == (225, 202, 158)).all(axis=2).sum() > 1000  # bars, BGR


def test_without_the_row_to_compare_with_there_are_no_differences(
    finished, content, study, rows, tmp_path
):
    ignore = shutil.ignore_patterns('ours')
    shutil.copytree(finished[0] / 'work_dirs', tmp_path / 'work_dirs', ignore=ignore)
    for file in tmp_path.rglob('scalars.json'):  # as of runs that are shorter than a log's interval
        file.write_text('')
    done, started = study(tmp_path, content, '--rows', 'No paths', '--test')
    assert (done.returncode, started) == (0, [])
    header, *lines = rows((tmp_path / 'work_dirs/mini/results.md').read_text())
    assert header[2:5] == ['runs', 'val mIoU', 'test mIoU']
    assert [[*line[:3], line[-1]] for line in lines] == [
        ['No paths', name, '2', 'nan'] for name in ('top', 'bottom', 'ensemble')
    ]


def test_costs_are_those_of_the_networks_that_an_output_needs(finished, rows):
    out = finished[0] / 'work_dirs/mini'
    lines = rows((out / 'results.md').read_text())[1:]
    costs = {(row, name): list(map(float, cells[-4:])) for row, name, *cells in lines}
    assert costs['ours', 'top'][:2] == costs['ours', 'bottom'][:2] == costs['ours', 'ensemble'][:2]
    top, bottom, both = (costs['No paths', name] for name in ('top', 'bottom', 'ensemble'))
    assert top[0] + bottom[0] == pytest.approx(both[0], abs=0.02)
    assert top[1] + bottom[1] == pytest.approx(both[1], abs=0.02)
    assert min(top[1], bottom[1]) > 0
    assert all(cells[2] > 0 for cells in costs.values())
    logs = [file.read_text() for file in out.glob('ours/*/*/vis_data/scalars.json')]
    logged = [json.loads(line) for line in ''.join(logs).splitlines()]
    seconds = statistics.median(line['time'] for line in logged if 'lr' in line)
    assert costs['ours', 'top'][3] == pytest.approx(seconds, abs=0.006)
    assert cv2.imread(str(out / 'costs.png')) is not None


def test_every_figure_stands_in_the_file_beside_it(finished):
    folder, _ = finished
    lines = list(csv.DictReader((folder / 'work_dirs/mini/results.csv').open()))
    assert len(lines) == 2 * 2 * 2 * 3  # rows, seeds, splits, outputs
    for line in lines:
        (record,) = [
            record
            for record in evaluations((folder / line['file']).parent)
            if record['iteration'] in (int(line['iteration']), None)
        ]
        figures = record['outputs'][line['output']]
        assert (record['split'], str(record['seed'])) == (line['split'], line['seed'])
        assert str(figures['mIoU']) == line['mIoU']
        for name, value in zip(record['classes'], figures['IoU'], strict=True):
            assert line[name] == ('' if value is None else str(value))


def test_what_is_finished_is_not_run_again_and_other_seeds_are(finished, content, study, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / 'copy')
    done, started = study(folder, content, '--test')
    assert (done.returncode, started) == (0, [])
    table = finished[1][finished[1].index('#') :]
    assert done.stdout.endswith(table)
    words = ('--seeds', 1, 2, '--rows', 'ours')
    lost = 'train_dataloader.dataset.data_root=gone'
    done, started = study(folder, content, *words, change=lambda command: command.append(lost))
    assert (done.returncode, started) == (1, ['ours/seed_2'])
    assert "ours, seed 2 (work_dirs/mini/ours/seed_2/console.log): error: data root 'gone'" in (
        done.stderr
    )
    assert re.findall(r'\| (\d) \|', done.stdout) == ['1'] * 6  # seed 1 of both rows


def test_a_row_starts_from_the_best_weights_of_another(finished, content, study, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / 'copy')
    row = dict(label='taught', config=MINI, cfg_options='model.frozen=[top]', load_from='ours')
    content = {**content, 'rows': [*content['rows'], row]}
    done, started = study(folder, content, '--rows', 'taught', '--seeds', 2, 1)
    assert (done.returncode, started) == (1, ['taught/seed_1'])
    assert (
        'taught, seed 2 (work_dirs/mini/taught/seed_2/console.log): it starts from '
        'work_dirs/mini/ours/seed_2, which is not finished; run that first' in done.stderr
    )
    runs = folder / 'work_dirs/mini'
    first, then = (
        torch.load(next(runs.glob(f'{row}/seed_1/best*.pth')), weights_only=False)['state_dict']
        for row in ('ours', 'taught')
    )
    same = [torch.equal(first[name], then[name]) for name in first if 'networks.top.' in name]
    assert all(same)
    assert len(same) > 50


def test_a_broken_run_goes_on_exactly_and_does_not_stop_the_others(
    finished, content, study, tmp_path
):
    def kill(command):
        """At iteration 2; the learning rate is that of the whole run."""
        if 'work_dirs/mini/ours/seed_1' in command:
            command.append('train_cfg.max_iters=2')
            return -9
        return None

    done, started = study(tmp_path, content, '--seeds', 1, change=kill)
    assert (done.returncode, started) == (1, ['ours/seed_1', 'no-paths/seed_1'])
    failed = r'error: 1 of 2 runs failed; .* ours, seed 1 \(.*/ours/seed_1/console.log\): log '
    assert re.match(failed, done.stderr)
    assert re.findall(r'\| (\d) \|', done.stdout) == ['1'] * 3
    done, started = study(tmp_path, content, '--seeds', 1)
    assert (done.returncode, started) == (0, ['ours/seed_1'])
    for run in ('ours/seed_1', 'no-paths/seed_1'):
        found, whole = (
            evaluations(folder / 'work_dirs/mini' / run) for folder in (tmp_path, finished[0])
        )
        assert found == whole


@pytest.mark.parametrize(
    ('change', 'words', 'message'),
    [
        ('rows: [', (), 'mini.yml is no YAML'),
        ('- ours', (), 'mini.yml has to be a mapping with the keys title, compare, rows'),
        (dict(seed=[0]), (), "mini.yml: unknown key 'seed'; the keys are title"),
        (dict(title=3), (), 'mini.yml: title=3 has to be of type str'),
        (dict(rows=[dict(label='ours')]), (), "mini.yml, row 1 lacks 'config'"),
        (dict(seeds=[]), (), r'mini.yml: seeds=\[\] have to be whole numbers'),
        (dict(seeds=[1, 1]), (), r'mini.yml: seeds=\[1, 1\] have to be whole numbers'),
        (dict(compare='theirs'), (), "compare='theirs' is none of ours, No paths"),
        (dict(cfg_options='model.decode_head.fusionn=1'), (), "row 'ours': .*fusionn"),
        (dict(cfg_options='train_cfg.max_iters=None'), (), "row 'ours': .*max_iters"),
        ({}, ('--rows', 'theirs'), "row 'theirs' is none of mini.yml: ours, No paths"),
        (dict(title='Another'), (), "work_dirs/mini holds the study 'A miniature'"),
        ({}, ('--iterations', 6), r"row 'ours' has changed since .*\.max_iters: 4 then, 6 now"),
        ({}, ('--out', '.'), r'\. is not the folder of a study'),
        ({}, ('--out', 'mini.yml'), 'mini.yml is not the folder of a study'),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named_and_nothing_is_written(
    change, words, message, finished, content, study
):
    folder, _ = finished
    before = {
        path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.name != 'mini.yml'
    }
    text = change if isinstance(change, str) else {**content, **change}
    done, started = study(folder, text, *words)
    assert (done.returncode, done.stdout, started) == (1, '', [])
    (line,) = done.stderr.splitlines()
    assert re.search(f'^error: .*{message}', line), line
    assert before == {
        path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.name != 'mini.yml'
    }


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (dict(label='OURS!', config=MINI, cfg_options='a=1'), "row 'OURS!' is row 'ours' once"),
        (dict(label='again', config=MINI), "row 'again' is row 'ours' once more"),
        (dict(label='x', config=MINI, load_from='x'), "row 'x': load_from='x' is no row above it"),
        (dict(label='x', config=MINI[:-1]), f"row 'x': config .* Did you mean {MINI}"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_meant_are_named(row, message, content, study, tmp_path):
    done, _ = study(tmp_path, {**content, 'rows': [*content['rows'], row]})
    assert done.returncode == 1
    assert re.search(f'^error: mini.yml.*{message}', done.stderr), done.stderr
    assert os.listdir(tmp_path) == ['mini.yml']


def test_the_test_split_has_to_be_another_than_that_which_chooses(content, study, tmp_path):
    options = content['cfg_options'].rsplit(' ', 2)[0]
    done, _ = study(tmp_path, {**content, 'cfg_options': options}, '--test')
    assert "error: --test: the test split of row 'ours' is its val split" in done.stderr
    assert os.listdir(tmp_path) == ['mini.yml']


def test_an_unknown_study_is_named(tool, tmp_path):
    done = tool('tools/run_study.py', 'camvid', cwd=tmp_path)
    assert (
        "error: study 'camvid' is no file, and none of camvid-180x240, camvid-180x240-rates,"
        in done.stderr
    )


# How runs are started, watched and shown


@pytest.fixture
def task(tmp_path):
    """A run of 100 iterations in an empty folder."""
    settings = dict(train_cfg=dict(max_iters=100), train_dataloader={}, val_dataloader={})
    return Task(Row('ours', 'a.py', ['b=1'], tmp_path / 'ours', settings), seed=3)


class Waiting:
    """A process that is started and looked at a number of times before it ends."""

    def __init__(self, looks=9, *, impatient=False):
        self.looks, self.said, self.impatient = looks, [], impatient

    def poll(self):
        self.looks -= 1
        return None if self.looks >= 0 else 0

    def terminate(self):
        self.said.append('terminate')

    def wait(self):
        self.said.append('wait')
        if self.impatient:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ('jobs', 'device', 'cuda', 'threads', 'workers'),
    [
        (1, None, False, 8, 0),
        (3, None, False, 2, 0),
        (20, None, False, 1, 0),
        (2, None, True, 1, 3),
        (16, None, True, 1, 1),
        (2, 'cpu', True, 4, 0),
    ],
)
def test_runs_share_the_cores(jobs, device, cuda, threads, workers, task, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(8), raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    started = []
    monkeypatch.setattr(study_queue, 'spawn', lambda *words: started.append(words))
    Queue([task], ROOT, jobs, device, test=False).attend(task)
    ((command, env, _),) = started
    assert env['OMP_NUM_THREADS'] == str(threads)
    assert env['OMP_WAIT_POLICY'] == os.environ.get('OMP_WAIT_POLICY', 'PASSIVE')
    assert env.get('CUDA_VISIBLE_DEVICES') == (
        '' if device else os.environ.get('CUDA_VISIBLE_DEVICES')
    )
    words = ['--cfg-options', 'b=1', 'randomness.seed=3']
    for split in ('train', 'val'):
        words += [
            f'{split}_dataloader.{key}'
            for key in (f'num_workers={workers}', f'persistent_workers={workers > 0}')
        ]
    start = [sys.executable, str(ROOT / 'tools/train.py'), 'a.py', '--work-dir', str(task.folder)]
    assert command == [*start, '--resume', *words]


def test_no_more_runs_than_jobs_at_once(task, monkeypatch):
    tasks = [Task(task.row, seed) for seed in range(5)]
    monkeypatch.setattr(study_queue, 'spawn', lambda *_: Waiting(3))
    queue, counts = Queue(tasks, ROOT, 2, None, test=False), []
    while not all(each.is_over for each in tasks):
        for each in tasks:
            queue.attend(each)
            counts.append(sum(bool(other.process) for other in tasks))
    assert max(counts) == 2


def test_progress_is_read_from_the_files_of_the_run(task):
    def log(start, *lines, end='\n'):
        folder = task.folder / start / 'vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + end)

    task.read()
    assert (task.iteration, task.left, task.best) == (0, '', None)
    log('20260101_000000', dict(lr=1, step=20, time=2.0), dict(lr=1, step=40, time=9.0))
    task.read()
    assert (task.iteration, task.left) == (40, '0:09:00 left')
    log('20260101_000001', end='')
    task.read()  # resumed, and nothing logged yet
    assert task.iteration == 40
    shutil.rmtree(task.folder / '20260101_000001')
    log(
        '20260101_000001',
        dict(lr=1, step=30, time=2.0),
        dict(mIoU=3, step=40, time=1),
        dict(lr=1),
        end='',
    )
    task.read()  # while a line is written
    assert (task.iteration, task.left) == (30, '0:02:20 left')


def test_a_run_that_ends_without_results_has_failed(task, monkeypatch):
    monkeypatch.setattr(study_queue, 'spawn', lambda *_: Waiting(0))
    queue = Queue([task], ROOT, 1, None, test=False)
    for state in ('train', 'failed', 'failed'):
        queue.attend(task)
        assert task.state == state
    assert task.said.startswith('it ended without what train gives')


def test_damaged_results_are_named_and_fail_their_run_alone(task):
    task.folder.mkdir(parents=True)
    (task.folder / 'iou.jsonl').write_text('{"split"\n')
    Queue([task], ROOT, 1, None, test=False).attend(task)
    assert task.state == 'failed'
    assert 'line 1 of' in task.said


@pytest.mark.parametrize('impatient', [False, True])
def test_an_interrupt_ends_the_runs_and_says_how_to_go_on(impatient, task, monkeypatch):
    processes = [Waiting(impatient=impatient), Waiting()]
    waiting = iter(processes)
    monkeypatch.setattr(study_queue, 'spawn', lambda *_: next(waiting))

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_queue.time, 'sleep', interrupt)
    message = None if impatient else 'with 0 of 2 runs finished; the same command goes on'
    with pytest.raises(KeyboardInterrupt, match=message):
        Queue([task, Task(task.row, 4)], ROOT, 2, None, test=False).work()
    assert [process.said[0] for process in processes] == ['terminate'] * 2


def test_a_run_that_a_killed_study_left_behind_is_waited_for(task, monkeypatch):
    monkeypatch.setattr(study_queue, 'is_locked', lambda folder: next(locked))
    started = []
    monkeypatch.setattr(study_queue, 'spawn', lambda *_: started.append(1) or Waiting(1))
    locked, queue = iter([True, True, False]), Queue([task], ROOT, 1, None, test=False)
    states = []
    for _ in range(3):
        queue.attend(task)
        states.append((task.state, len(started)))
    assert states == [('elsewhere', 0), ('elsewhere', 0), ('train', 1)]


def test_on_a_terminal_the_table_is_written_over(task, monkeypatch, capsys):
    for name, value in dict(FORCE_COLOR='1', TERM='xterm', COLUMNS='100').items():
        monkeypatch.setenv(name, value)
    with display([task, Task(task.row, 4)]) as show:
        show()
        task.state, task.iteration = 'train', 20
        show()
    printed = capsys.readouterr().out
    assert printed.count('\x1b[1A') >= 3  # back to the first line
    assert 'best so far' in printed
    assert '20/100' in printed


# What ships, and kills


@pytest.mark.parametrize('file', sorted(STUDIES.glob('*.yml')), ids=lambda file: file.stem)
def test_shipped_studies_can_be_run(file, tmp_path):
    study = read_study(file, tmp_path)
    assert len(study.seeds) == 3 or file.stem.endswith('-rates')
    names = {
        row.config for row in study.rows if not any('experiment_name' in o for o in row.options)
    }
    assert names <= {path.stem for path in ROOT.glob('configs/[!_]*/*.py')}


def test_both_families_on_camvid_have_the_same_rows():
    small, large = ((STUDIES / f'camvid-{size}.yml').read_text() for size in ('180x240', '360x480'))
    small = small.replace('1xb6-600_', '1xb8-3k_').replace('180x240', '360x480')
    assert small.replace('on a CPU', 'on a GPU') == large


def study_with_its_runs(*words):
    """Be the first of a group of processes, all of which can be killed at once."""
    os.setsid()
    script(ROOT / 'tools/run_study.py', *words)


@pytest.mark.slow
def test_a_killed_study_goes_on_exactly(finished, content, tmp_path):
    """With its runs, as when a machine dies; the second time alone, so that they train on."""
    (tmp_path / 'mini.yml').write_text(yaml.safe_dump(content))
    words = ('mini.yml', '--jobs', '2', '--rows', 'ours')
    place = dict(log=tmp_path / 'log', cwd=tmp_path, PYTHONPATH=str(ROOT))
    runs = [tmp_path / f'work_dirs/mini/ours/seed_{seed}' for seed in (0, 1)]
    for kill, file in ((os.killpg, 'iter_1.pth'), (os.kill, 'iter_2.pth')):
        process = start(study_with_its_runs, *words, **place)
        while not any((run / file).exists() for run in runs) and process.is_alive():
            process.join(0.02)
        kill(process.pid, signal.SIGKILL)
        process.join()
    process = start(study_with_its_runs, *words, **place)
    process.join()
    assert process.exitcode == 0, place['log'].read_text()
    for run in runs:
        whole = evaluations(finished[0] / run.relative_to(tmp_path))
        assert {line['iteration']: line for line in evaluations(run)} == {
            line['iteration']: line for line in whole
        }
