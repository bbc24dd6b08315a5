"""The model file and the run folder: formats, checksums, and reading of older formats.

It may import `metalad.methods` and what stands below.
"""
