"""Interfaces and formats of other tools: delve's tracker, phd-lab's logs."""
