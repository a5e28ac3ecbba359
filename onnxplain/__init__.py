"""Explain the predictions of neural networks stored as ONNX, without their framework."""
