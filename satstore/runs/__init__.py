"""The run folder: manifest, lock, events, tables; checks, archives and disk use; the folder of all runs."""
