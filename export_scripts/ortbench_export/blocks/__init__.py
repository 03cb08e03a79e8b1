"""Pieces of a model: functions that add nodes to a graph and return the names of what they computed.

Each block writes both flavours: `fused` with ONNX Runtime's contrib operators, `plain` with standard ones alone.
"""
