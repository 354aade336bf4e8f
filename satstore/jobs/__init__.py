"""Commands in the background: started, watched, recorded, ended."""
