"""The values that some arguments of the public functions can have; the command line offers the same."""

from typing import Literal

Scoring = Literal["calibrated", "raw"]
Protocol = Literal["default", "paper"]
Precision = Literal["fp32", "bf16"]
WantedPrecision = Literal["auto", "fp32", "bf16"]
Resolution = Literal["fast", "balanced", "fine"]
Format = Literal["jsonl", "csv", "coco"]
ExportFormat = Literal["onnx", "openvino"]
ExportPrecision = Literal["fp32", "fp16", "int8"]
