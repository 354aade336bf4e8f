"""Reports for people: figures, HTML, advice on a run, lists of runs and jobs."""
