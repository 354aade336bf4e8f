"""The stage that fits probes: which layers, where, and the table."""
