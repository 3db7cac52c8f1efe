"""Measurements of flatstore beside its peers: an asv suite, and the figures to reach."""
