"""Verification of one experiment: its commit log, the files of its folder, then its two stores."""

from collections.abc import Iterator
from contextlib import suppress

from satstore.config.latent_keys import ProbeKey
from satstore.errors import CorruptError
from satstore.runs.events import Event, Listener
from satstore.runs.manifest import target_file, target_of
from satstore.runs.repair import labels_command, repair_command
from satstore.runs.run import Run
from satstore.runs.table_formats import find_table
from satstore.runs.verify.finding import Finding, note
from satstore.storage.files import Digest
from satstore.storage.location import Folder


class Verification:
    """The verification of one experiment; it writes nothing and needs no lock.

    The listener is called with progress events, in bytes; `n_files` committed files of `size_bytes` were read
    so far.
    """

    def __init__(self, run: Run, listener: Listener | None = None) -> None:
        self.run = run
        self.n_files = 0
        self.size_bytes = 0
        self._listener = listener
        self._total = 0

    def findings(self) -> Iterator[Finding]:
        """Read all committed files, and yield findings on the way."""
        from satstore.runs.verify.stores import AnalysisCheck, LatentsCheck

        run = self.run
        run.reload()
        probed = dict(self._probed_layers())
        stores = [
            LatentsCheck(run, run.latents_location, self._advance),
            AnalysisCheck(run, Folder(run.analysis_path), self._advance, probed),
        ]
        self._total = sum(record.size_bytes for record in run.manifest.files.values())
        self._total += sum(store.size_bytes for store in stores)
        if run.is_being_written:
            yield note("it is being written right now; what is not finished is not reported")
        n_torn = run.commits.count_torn()
        if n_torn:
            yield note(f"commits.jsonl has torn lines ({n_torn}); what they named counts as not written")
        for name in run.manifest.files:
            yield from self._check_file(name)
        for name in run.manifest.targets:
            if not run.has_file(target_file(name)):
                yield Finding(f"the labels of target {name} are not there", labels_command(run, name))
        for store in stores:
            yield from store.findings()
        if self._listener is not None:
            self._listener(Event("verify", "done"))

    def _advance(self, size_bytes: int) -> None:
        self.n_files += 1
        self.size_bytes += size_bytes
        if self._listener is not None:
            done = min(self.size_bytes, self._total)
            self._listener(Event("verify", "progress", self.run.name, done=done, total=self._total))

    def _check_file(self, name: str) -> Iterator[Finding]:
        record, what = self.run.manifest.files[name], ""
        path, staged = self.run.path / name, self.run.path / f"{name}.new"  # it may not be renamed yet
        try:
            if not any(file.is_file() and Digest.of_file(file) == record.digest for file in (path, staged)):
                what = "is not what was committed" if path.is_file() else "is committed but not there"
        except OSError as error:
            what = f"can't be read: {error.strerror or error}"
        if what:
            if name == "config.json":
                yield Finding(f'{name} {what}; restore it, manifest.json holds the same under "config"')
            else:
                yield Finding(f"{name} {what}", repair_command(self.run, name))
        else:
            yield from self._check_content(name)
        self._advance(record.size_bytes)

    def _check_content(self, name: str) -> Iterator[Finding]:
        """Check that the content of a file, which is as committed, is valid for its name."""
        try:
            if name.endswith(".csv") and find_table(name.removesuffix(".csv")):
                self.run.rows(name.removesuffix(".csv"))
            elif target_of(name) in self.run.manifest.targets:
                self.run.labels(target_of(name), "train")
            elif name == "computational_info.json":
                self.run.costs()
        except CorruptError as error:
            yield Finding(str(error))  # its text names the remedy

    def _probed_layers(self) -> Iterator[tuple[ProbeKey, set[str]]]:
        """Yield each table of probes, and the layers whose probes the store must hold."""
        for key, record in self.run.manifest.probes.items():
            with suppress(CorruptError):  # which is reported with the file
                fitted = {row["layer"] for row in self.run.rows(key.table) if not row.get("error")}
                yield key, fitted - record.layers_without_probe
