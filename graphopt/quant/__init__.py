"""Integer arithmetic for float graphs: what kernels there are, calibration, placement, and the search for a mix."""
