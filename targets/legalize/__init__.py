"""Rewrites that more than one target needs, each into ONNX's own operators."""
