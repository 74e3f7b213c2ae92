"""What GitHub, contributors and whoever cites the project read fits the project."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

import mmseg_coop
from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / '.github/workflows').glob('*.yml'))
FORMS = sorted((ROOT / '.github/ISSUE_TEMPLATE').glob('[!c]*.yml'))
# `make help` shows those with a comment.
TARGETS = set(re.findall(r'^([a-z-]+):.*## ', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def name_of(path):
    return path.name


def assert_targets_exist(command):
    words = shlex.split(command, comments=True)
    assert words[0] == 'make'
    assert {word for word in words[1:] if '=' not in word} <= TARGETS, command


@pytest.mark.parametrize('path', WORKFLOWS, ids=name_of)
def test_workflow_runs_targets_of_the_makefile_alone(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow['permissions'] == {'contents': 'read'}
    commands = []
    for job in workflow['jobs'].values():
        assert job['timeout-minutes'] <= 120
        for step in job['steps']:
            assert ('run' in step) != ('uses' in step)
            commands += step.get('run', '').splitlines()
    assert commands
    for command in commands:
        assert '${{' not in command  # what is put into a command may carry code
        assert_targets_exist(command)


def test_workflows_test_every_python_that_the_metadata_name():
    jobs = yaml.safe_load((ROOT / '.github/workflows/tests.yml').read_text())['jobs']
    classifiers = re.findall(r"Python :: (3\.\d+)'", (ROOT / 'pyproject.toml').read_text())
    assert jobs['onedl']['strategy']['matrix']['python'] == classifiers
    assert jobs['openmmlab']['strategy']['matrix']['python'] == ['3.10', '3.11']


@pytest.mark.parametrize('path', FORMS, ids=name_of)
def test_issue_form_has_what_github_asks_for(path):
    form = yaml.safe_load(path.read_text())
    assert form['name']
    assert form['description']
    ids = [field['id'] for field in form['body']]
    assert len(ids) == len(set(ids))
    assert all(field['attributes']['label'] for field in form['body'])
    assert any(field.get('validations', {}).get('required') for field in form['body'])


def test_citation_names_this_version_and_the_papers_as_the_readme_does():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == mmseg_coop.__version__
    bibtex = (ROOT / 'README.md').read_text().split('```bibtex')[1].replace('{DPANet}', 'DPANet')
    assert len(citation['references']) == bibtex.count('@')
    for paper in citation['references']:
        assert f'{{{paper["title"]}}}' in bibtex
        authors = [f'{who["family-names"]}, {who["given-names"]}' for who in paper['authors']]
        assert f'{{{" and ".join(authors)}}}' in bibtex
        assert f'{{{paper["year"]}}}' in bibtex
        identifier = paper.get('doi') or paper['identifiers'][0]['value']
        assert identifier in bibtex


def test_changelog_has_a_section_for_what_comes_next_or_for_this_version():
    sections = re.findall(r'^## \[(.+?)\]', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert sections[0] in ('Unreleased', mmseg_coop.__version__)


def test_hooks_run_the_tools_of_the_environment_that_tests_use():
    (repo,) = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    required = re.findall(r'^\w+', (ROOT / 'requirements/tests.txt').read_text(), re.MULTILINE)
    makefile = (ROOT / 'Makefile').read_text()
    for hook in repo['hooks']:
        module = re.match(r'\.venv/bin/python -m (\w+)', hook['entry'])[1]
        assert module.removesuffix('_lib') in required
        assert re.search(rf'-m {module}\b', makefile)
