"""Stores in object storage: published as whole snapshots, read by any number of machines."""
