"""What an experiment will take of the machine: time, memory, disk, before it starts."""
