"""From the ONNX graph to Relax, and from what each operator computes to loops; runs in the process that compiles."""
