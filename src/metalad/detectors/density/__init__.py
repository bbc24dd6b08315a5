"""Density models of features or patches, fitted in closed form on defect-free images.

It may import `metalad.nn`, `metalad.training` and the torch-free packages.
"""
