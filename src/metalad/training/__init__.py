"""Optimization by gradient descent: the loop, checkpoints, precision, devices, and process groups.

It may import `metalad.nn` and the torch-free packages.
"""
