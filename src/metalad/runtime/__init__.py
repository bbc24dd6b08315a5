"""Files, processes, Ray, settings, progress and errors, without torch.

It imports no other package of metalad.
"""
