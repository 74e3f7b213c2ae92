"""Hooks."""

from .check_splits_hook import CheckSplitsHook

__all__ = ['CheckSplitsHook']
