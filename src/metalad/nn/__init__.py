"""Network layers, losses, backbones, and tensor transforms.

It may import the torch-free packages alone.
"""
