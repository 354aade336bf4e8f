"""The mathematics: moments, spectra, probes, receptive fields. No files, no commands, nothing of a run."""
