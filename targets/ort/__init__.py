"""ONNX Runtime as a backend: the CPU and CUDA execution providers."""
