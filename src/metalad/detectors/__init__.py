"""What methods share: the detector base classes, residuals, calibration, threshold, and method families.

It may import `metalad.training`, `metalad.nn` and the torch-free packages.
"""
