"""Holds what mmengine looks for here when it enters our scope; all else has a room of its own."""

from mmseg.utils import register_all_modules as register_all_modules
