"""The terminal app: it reads logs folders and starts commands; it computes nothing."""
