"""Network layers, losses, backbones, and tensor transforms.

It imports only the torch-free packages.
"""
