"""What two recordings of the same have in common."""

from satstore.runs.run import Run


def read_stores(run: Run) -> dict[str, bytes]:
    """Return the files of a run's stores, without the attributes that name the run, and its metrics."""
    files = {
        f"{store.name}/{path.relative_to(store)}": path.read_bytes()
        for store in (run.path / "latents.zarr", run.path / "analysis.zarr")
        for path in store.rglob("*")
        if path.is_file() and path != store / "zarr.json"
    }
    return files | {"metrics.csv": run.read_file("metrics.csv")}
