"""Example, calibration and evaluation data: the model's interface, loading, and made-up inputs."""
