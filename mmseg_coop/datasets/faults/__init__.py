"""Files and folders of the data that cannot be used: found, named, stopped at or left out."""

from .checked_loading import check_loading
from .folders import dead_links
from .skip_faulty_dataset import SkipFaultyDataset
from .walk import iter_datasets

__all__ = ['SkipFaultyDataset', 'check_loading', 'dead_links', 'iter_datasets']
