"""OpenVINO as a backend: its CPU plugin."""
