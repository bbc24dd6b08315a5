"""Image data sets: lists of good and anomalous images with their masks, and decoded pixels; without torch.

It may import `metalad.runtime`.
"""

from metalad.data.content import data_hash
from metalad.data.layouts import read_category
from metalad.data.loading import Images, Skipped, load_images, read_truth
from metalad.data.sample import Category, Sample
from metalad.data.splitting import split_validation

__all__ = [
    "Category",
    "Images",
    "Sample",
    "Skipped",
    "data_hash",
    "load_images",
    "read_category",
    "read_truth",
    "split_validation",
]
