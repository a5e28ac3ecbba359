"""Converters from other sources (frameworks, files of other languages) to ONNX, one module each."""
