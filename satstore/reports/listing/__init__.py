"""The lists of runs and jobs that the command line and the terminal app show."""
