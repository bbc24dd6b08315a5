"""Plain result objects (reports, comparisons, predictions, metrics) and their HTML pages, without torch.

It may import `metalad.visualization`, `metalad.data` and `metalad.runtime`.
"""
