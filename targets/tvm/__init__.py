"""TVM as a backend: kernels for CPUs through LLVM."""
