"""Files, processes, Ray, settings, progress and errors; does not import torch.

It imports no other package of metalad.
"""
