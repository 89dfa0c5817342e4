"""Retrieval among unrelated subjects, its permutation null, cross-fitting, baselines and power."""
