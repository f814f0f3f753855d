"""Errors, keyed random numbers, whole files, fingerprints: what everything else rests on."""
