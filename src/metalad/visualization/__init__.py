"""Heat maps, overlays, plots, and HTML pages, without torch.

It may import `metalad.results`, `metalad.data` and `metalad.runtime`.
"""
