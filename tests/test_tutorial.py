"""The notebook runs as it stands, and shows what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

NOTEBOOK = Path(__file__).resolve().parents[1] / 'demo/tutorial.ipynb'


def test_the_notebook_runs_and_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['python'])
    plt.switch_backend('agg')
    drawn = []

    def show():
        canvas = plt.gcf().canvas
        canvas.draw()
        drawn.append(np.array(canvas.buffer_rgba()))
        plt.close()

    monkeypatch.setattr(plt, 'show', show)
    namespace = {}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text('utf-8'))['cells']):
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == []  # of nobody's machine
            exec(compile(''.join(cell['source']), f'cell {number}', 'exec'), namespace)
    assert len(drawn) == 5
    for picture in drawn:
        assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 20
    for losses in namespace['losses'].values():
        assert np.mean(losses[-5:]) < 0.6 * losses[0]
    for scores in namespace['scores'].values():
        assert scores['ensemble'] > 20  # percent; one class everywhere has 4
