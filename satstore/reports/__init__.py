"""What people look at: figures, the HTML report, evidence for advice, lists of runs and jobs."""
