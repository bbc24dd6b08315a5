"""Conversion of a trained detector to an ONNX or OpenVINO file, and the comparison of that file with the detector.

It may import `metalad.storage` and what stands below. The packages onnx, onnxscript, onnxruntime and openvino are
imported inside functions, because they are optional.
"""
