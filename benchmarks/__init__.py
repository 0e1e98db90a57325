"""Measurements, as ratios against a peer in the same run; results are kept as data in `results/`."""
