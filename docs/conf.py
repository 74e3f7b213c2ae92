"""Settings of Sphinx. ``make docs`` builds the pages into docs/_build/html, without the network."""

from __future__ import annotations

import os.path as osp
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from mmcv.transforms.utils import cache_randomness
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmseg_coop import __version__

DOCS = Path(__file__).resolve().parent
CONFIGS = DOCS.parent / 'configs'

# What this decorates cannot be read off its class, which autodoc does; now it can.
_get = cache_randomness.__get__
cache_randomness.__get__ = lambda self, instance, owner: (
    self if instance is None else _get(self, instance, owner)
)

project = 'mmseg-coop'
version = release = __version__
extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
nitpicky = True
# The libraries below, whose types appear in signatures, are not linked: that would need the
# network. Whatever else cannot be linked is an error.
nitpick_ignore_regex = [
    (
        r'py:.*',
        r'(argparse|collections|contextlib|huggingface_hub|logging|mmcv|mmengine|mmseg|numpy|os|'
        r'pathlib|torch)\..*',
    ),
    (r'py:class', r'DataLoader|Runner'),  # of a constructor, whose types are taken as written
]

html_theme = 'furo'
html_title = f'mmseg-coop {__version__}'
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # those of mmseg are not written for this page
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'  # beside the text of each argument, not in the signature
autodoc_typehints_description_target = 'documented_params'
autodoc_typehints_format = 'short'
autodoc_default_options = {'members': True, 'show-inheritance': True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88


def adopt_readmes(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the README of every folder of configs a page, and let links to it lead there.

    The page ``configs/NAME`` gets the text of ``configs/NAME/README.md``, whose links are relative
    to that folder.

    Args:
        app: The application.
        docname: The page.
        source: Its text, changed in place.
    """
    page = DOCS / docname
    origin = page
    if page.parent.name == 'configs':
        origin = CONFIGS / page.name / 'README.md'
        source[0] = origin.read_text(encoding='utf-8')
        app.env.note_dependency(str(origin))

    def redirect(match: re.Match[str]) -> str:
        target = (origin.parent / match[1]).resolve()
        if target.name == 'README.md' and target.parent.parent == CONFIGS:
            target = DOCS / 'configs' / f'{target.parent.name}.md'
        return f']({osp.relpath(target, page.parent)}'

    parts = re.split(r'(^```.*?^```$)', source[0], flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r'\]\((?!https?:|#)([^)#]+)', redirect, text) for text in parts[::2]]
    source[0] = ''.join(parts)  # code, every second part, stays as it is


def link_by_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> Any:
    """Link a class or function by its bare name, if this reference has one of that name.

    Docstrings name their neighbours as the code does, and type hints name the module in which a
    class is written, while the reference lists it under the package from which it is imported.

    Args:
        app: The application.
        env: The environment.
        node: The reference that found nothing.
        content: What it shows.

    Returns:
        The link, or None.
    """
    target = node.get('reftarget', '')
    if node.get('refdomain') != 'py' or ('.' in target and not target.startswith('mmseg_coop.')):
        return None
    domain = env.domains.python_domain
    name = target.rpartition('.')[2]
    fuzzy = domain.find_obj(env, None, None, name, node['reftype'], 1)
    found = [full_name for full_name, entry in fuzzy if not entry.aliased]
    if len(found) != 1:
        return None
    return domain.resolve_xref(
        env, node['refdoc'], app.builder, node['reftype'], found[0], node, content
    )


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect('source-read', adopt_readmes)
    app.connect('missing-reference', link_by_name)
