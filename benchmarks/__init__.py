"""Measurements of flatstore beside its peers: an asv suite, a file for each question, and the figures to reach."""
