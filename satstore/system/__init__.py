"""The machine: cores, memory, limits, signals, and how values are written for people."""
