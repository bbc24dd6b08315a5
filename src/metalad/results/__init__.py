"""Plain result objects: reports, comparisons, and metrics, without torch.

It may import `metalad.data` and `metalad.runtime`.
"""
