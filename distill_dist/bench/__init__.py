"""Measurements that compare in one run, so that a machine's drift cancels."""
