"""Results of a run: its tables, costs, latents, spectra, saturation and the probes' confusion matrices."""

import io
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from satstore.config.latent_keys import SPLITS, LatentsKey, ProbeKey
from satstore.config.validation import describe_invalid
from satstore.errors import CorruptError, NotFoundError, UnknownNameError, printable
from satstore.registry import suggest
from satstore.runs.folder import RunFolder, reread_after_commit
from satstore.runs.manifest import target_file
from satstore.runs.repair import damage_remedy, extract_command, probe_command
from satstore.runs.table_formats import find_table, read_cells
from satstore.storage.commit_log import is_anything, is_metadata
from satstore.storage.location import Folder
from satstore.system.text import printable_content

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from satstore.analysis.spectrum import Definition
    from satstore.storage.zarr import LatentSplit


CostCount = Annotated[int, Field(ge=0, le=10**30)]
"""A number of parameters or FLOPs."""


class LayerCosts(BaseModel):
    """What one layer costs."""

    layer: str
    n_parameters: CostCount
    flops: CostCount


class CostsFile(BaseModel):
    """The part of ``computational_info.json`` that is read here; :mod:`satstore.stages.flops` writes it."""

    n_epochs: CostCount
    n_parameters: CostCount
    flops: CostCount
    training_flops: CostCount
    layers: list[LayerCosts]


class RunResults(RunFolder):
    """A run folder with methods that read its results."""

    @reread_after_commit
    def table(self, name: str) -> "pd.DataFrame":
        """Return a table of the run, such as ``"metrics"``, ``"saturation"`` or ``"probe-pool4"``.

        Raises NotFoundError if the run has no such table (yet), and CorruptError if the file isn't what was
        committed, or its columns aren't those declared in :mod:`satstore.runs.table_formats`.
        """
        import pandas as pd

        file = f"{name}.csv"
        content = self.read_file(file)
        with self._reading(file):
            if find_table(name) is not None:
                read_cells(name, content)
            # Layers of an nn.Sequential have names such as 0 and 1.0, which pandas would read as numbers.
            text = io.StringIO(printable(content.decode("utf-8-sig"), "\n\t\r"))
            return pd.read_csv(text, converters={"layer": str}, low_memory=False)

    @reread_after_commit
    def rows(self, name: str) -> list[dict[str, str]]:
        """Read a table without pandas: its rows as text, to the last digit; none if there is no table.

        Raises CorruptError as :meth:`table`.
        """
        file = f"{name}.csv"
        if not self.has_file(file):
            return []
        content = self.read_file(file)
        with self._reading(file):
            columns, rows = read_cells(name, content)
        return [dict(zip(columns, cells, strict=False)) for cells in rows]

    @reread_after_commit
    def costs(self) -> dict[str, Any] | None:
        """Return the parameters and FLOPs that ``satstore flops`` counted; None if it did not run.

        docs/store-format.md describes the content. Raises CorruptError if the file isn't what was committed,
        or its content is invalid.
        """
        name = "computational_info.json"
        if not self.has_file(name):
            return None
        content = self.read_file(name)
        with self._reading(name):
            try:
                CostsFile.model_validate_json(content)
            except ValidationError as error:
                raise ValueError(f"has {describe_invalid(error)}") from error
            found: dict[str, Any] = printable_content(json.loads(content))
        return found

    @reread_after_commit
    def latents(self, pooling: str, split: str, epoch: int | None = None) -> "LatentSplit":
        """Return the latents of one pooling (``pool4``) and split (``train``, ``eval``), by layer.

        They are those after an epoch, counted from 0, by default the last. Raises NotFoundError if they
        aren't stored, CorruptError if the stored files aren't what was committed.
        """
        from satstore.storage.zarr import open_latents

        key = LatentsKey.parse(pooling)
        if epoch not in (None, self.last_epoch):
            key = key.at(epoch)
        command = extract_command(self, key)
        if key in self.manifest.re_extractable:
            raise NotFoundError(
                f"the latents {str(key)!r} of {self.name} were removed; write them again with: {command}"
            )
        if key not in self.manifest.latents:
            stored = ", ".join(map(str, self.manifest.latents)) or "none"
            raise NotFoundError(
                f"{self.name} has no latents {str(key)!r} (stored: {stored}); write them with: {command}"
            )
        remedy = f"write it again with: {command}"
        location = self.latents_location
        self.commits.read(location.name).check(location, f"{key}/{split}", remedy)
        found = open_latents(self.latents_path).split(str(key), split)
        layers = self.manifest.latents[key].layers
        return found.only(layers.get(split, {})) if layers else found

    @reread_after_commit
    def labels(self, name: str, split: str) -> "NDArray[np.int64]":
        """Return the class index of each sample of a split by a target, as :meth:`.Run.set_labels` added it.

        ``run.manifest.targets[name].classes`` has the classes' names. Raises UnknownNameError if the run has
        no such target, CorruptError if its labels aren't what was committed.
        """
        from satstore.runs.targets import find_target, parse_target

        if split not in SPLITS:
            raise UnknownNameError(f"no split named {split!r}; known are train, eval")
        record, file = find_target(self.manifest, name, self.name), target_file(name)
        content = self.read_file(file)
        with self._reading(file):
            return parse_target(content, record)[split]

    @reread_after_commit
    def spectra(self, split: str, layers: Collection[str] | None = None) -> "dict[str, NDArray[np.float64]]":
        """Return the eigenvalues (epoch, eigenvalue) of a split's layers, all or some, descending.

        Epochs in which a layer's output was not finite have NaN. Raises CorruptError if the stored files
        aren't what was committed.
        """
        from satstore.storage.zarr import AnalysisStore

        # Unlike the latents' shards, these files are small: compare their whole content with the log.
        self.commits.read(self.analysis_path.name).check(
            Folder(self.analysis_path),
            f"spectra/{split}",
            damage_remedy(self, "metrics.csv"),
            is_of_eigenvalues,
        )
        n_epochs = self.manifest.summary.epochs_done
        found = AnalysisStore(self.analysis_path).spectra(split, layers)
        return {layer: eigenvalues[:n_epochs] for layer, eigenvalues in found.items()}

    def saturation(
        self, delta: float | None = None, definition: "Definition" = "exact", split: str | None = None
    ) -> "pd.DataFrame":
        """Compute saturation and intrinsic dimension at any delta, from the stored spectra.

        Parameters
        ----------
        delta
            Share of the variance to explain, in (0, 1]; the config's by default.
        definition
            ``exact`` or ``delve``; see :func:`satstore.analysis.spectrum.intrinsic_dimension`.
        split
            ``train``, ``eval``, or None for both.

        Returns
        -------
        pandas.DataFrame
            A row per epoch, split and layer, layers in forward order.

        Raises
        ------
        NotFoundError
            If there are no spectra.
        """
        from satstore.analysis.spectrum import tabulate_saturation

        if split not in (None, "train", "eval"):
            raise UnknownNameError(f"no split named {split!r}; known are train, eval")
        spectra = {name: self.spectra(name) for name in (("train", "eval") if split is None else (split,))}
        if not any(spectra.values()):
            hint = "yet; train it first" if self.last_epoch < 0 else "of its epochs; training stores them"
            raise NotFoundError(f"{self.name} has no spectra {hint}")
        stored = {layer for found in spectra.values() for layer in found}
        if not stored & set(self.layers):
            found = ", ".join(sorted(stored)[:4])
            raise CorruptError(
                f"{self.analysis_path} has spectra of {found}, and of no layer that the manifest names; "
                f"{damage_remedy(self, 'metrics.csv')}"
            )
        delta = self.config.delta if delta is None else delta
        return tabulate_saturation(spectra, self.layers, delta, definition)

    def probe_tables(self) -> list[str]:
        """Return the names of the tables of probes on the last epoch's latents, in the order of fitting."""
        return [str(key) for key in self.manifest.last_probes]

    def probe_evolution(self, pooling: str = "pool4", prefix: str = "") -> "pd.DataFrame":
        """Return the tables of probes of all epochs that have one, joined, by pooling and the probes' prefix.

        There is a row per epoch (counted from 0) and layer, layers in forward order: ``epoch``, and the
        columns of ``probe-pool4.csv``. Raises NotFoundError if there are no probes yet, CorruptError if a
        table isn't what was committed.
        """
        import pandas as pd

        tables = {}
        wanted = ProbeKey(LatentsKey.parse(pooling).at(None), prefix)
        for key in self.manifest.probes:
            epoch = key.latents.epoch
            if ProbeKey(key.latents.at(None), key.prefix) == wanted and self.has_file(key.file):
                tables[self.last_epoch if epoch is None else epoch] = key.table
        if not tables:
            raise NotFoundError(
                f"{self.name} has no probes at {pooling!r} yet; fit them with: "
                f"satstore probe --run {self.name} {wanted.latents.flags}"
            )
        found = [self.table(tables[epoch]).assign(epoch=epoch) for epoch in sorted(tables)]
        rows = pd.concat(found, ignore_index=True)
        return rows[["epoch", *(column for column in rows if column != "epoch")]]

    @reread_after_commit
    def confusion(self, layer: str, table: str | None = None) -> "pd.DataFrame":
        """Return the confusion matrix of a layer's probe on the eval split.

        Parameters
        ----------
        table
            The pooling, such as ``"pool4"``, or ``"P-pool4"`` for probes fitted with the prefix P, or
            ``"epoch5-pool4"`` for those of an earlier epoch; by default the first of the last epoch's.

        Returns
        -------
        pandas.DataFrame
            Number of samples by true class (rows) and predicted class (columns), over the classes of the
            train split; where each position has a probe, the sum over positions.

        Raises
        ------
        NotFoundError
            If the layer has no probe in that table; UnknownNameError, if the run has no such layer.
        CorruptError
            If the stored files aren't what was committed.
        """
        import numpy as np
        import pandas as pd

        from satstore.runs.targets import class_names
        from satstore.storage.zarr import AnalysisStore

        shown = next((str(key) for key in self.manifest.shown_probes() if key.latents.epoch is None), "pool4")
        key = ProbeKey.parse(table or shown)
        self._check_probe(layer, key)
        remedy = f"fit it again with: {probe_command(self, key)} --overwrite"
        self.commits.read(self.analysis_path.name).check(
            Folder(self.analysis_path), f"probes/{key}", remedy, is_anything
        )
        arrays = AnalysisStore(self.analysis_path).probe(str(key), layer)
        if "confusion" not in arrays:
            raise NotFoundError(
                f"{self.name} has no confusion of layer {layer} at {key}: matrices of that many classes and "
                "positions are not kept; the table says how accurate the probes are"
            )
        n_classes = arrays["confusion"].shape[-1]
        classes = class_names(self, self.manifest.probes[key].target)
        places = arrays.get("class_index", np.arange(n_classes))
        if not np.isin(places, np.arange(len(classes))).all():
            raise CorruptError(
                f"{self.analysis_path}/probes/{key} has a probe of layer {layer} for classes up to "
                f"{max(places)}; expected some of the {len(classes)} that the manifest names; {remedy}"
            )
        names = [classes[place] for place in places]
        counts = arrays["confusion"].reshape(-1, n_classes, n_classes).sum(axis=0)
        return pd.DataFrame(
            counts, pd.Index(names, name="true_class"), pd.Index(names, name="predicted_class")
        )

    def class_accuracy(self, layer: str, table: str | None = None) -> "pd.Series[float]":
        """Return the share of each class's eval samples that a layer's probe classifies correctly.

        A class that the eval split lacks has NaN; a class that the train split lacks is left out. For the
        parameters and errors, see :meth:`confusion`.
        """
        counts = self.confusion(layer, table)
        accuracy: pd.Series[float] = counts.to_numpy().diagonal() / counts.sum(axis=1)
        return accuracy.rename("accuracy")

    def _check_probe(self, layer: str, key: ProbeKey) -> None:
        if layer not in self.layers:
            raise UnknownNameError(f"{self.name} has no layer {layer!r}{suggest(layer, self.layers)}")
        tables = self.manifest.summary.probe_accuracy
        if layer not in tables.get(key, {}):
            fitted = ", ".join(map(str, tables)) or "none"
            raise NotFoundError(
                f"{self.name} has no probe of layer {layer} at {str(key)!r} (tables fitted: {fitted}); "
                f"fit it with: {probe_command(self, key)}"
            )
        if tables[key][layer] is None:
            raise NotFoundError(
                f"{self.name}: layer {layer} at {key} allows no probe; its row in {key.file} says why"
            )


def is_of_eigenvalues(key: str) -> bool:
    """Return whether a file of the analysis store holds eigenvalues or metadata."""
    return is_metadata(key) or "/eigenvalues/" in key
