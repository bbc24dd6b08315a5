"""Inference without torch: engines that score pixels, what a model file states, thresholds, and the stream of images.

It may import `metalad.results`, `metalad.visualization`, `metalad.data` and `metalad.runtime`.
"""
