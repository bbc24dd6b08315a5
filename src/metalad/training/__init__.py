"""Training by gradient descent: the loop, checkpoints, precision, devices, and process groups.

It imports only `metalad.nn` and the torch-free packages.
"""
