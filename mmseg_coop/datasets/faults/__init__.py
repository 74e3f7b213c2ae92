"""Files and folders of the data that cannot be used: found, named, stopped at or left out."""

from .checked_loading import check_loading
from .skip_faulty_dataset import SkipFaultyDataset

__all__ = ['SkipFaultyDataset', 'check_loading']
