"""Cine series: readers, de-identification, the store, a phantom, the scenario."""
