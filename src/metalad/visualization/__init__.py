"""Heat maps, overlays, plots and pictures from arrays, without torch.

It may import `metalad.data` and `metalad.runtime`.
"""
