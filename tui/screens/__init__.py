"""The screens of the terminal app, a file each."""
