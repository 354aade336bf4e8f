"""LogisticProbe: scikit-learn's logistic regression, out of core; and its evaluation."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from satstore.analysis.feature_moments import nonfinite_error
from satstore.analysis.floats import Floats, float_dtype
from satstore.analysis.logistic.engine import ThreadEngine, start_tile_threads
from satstore.analysis.logistic.evaluation import EvaluationQuery, class_codes
from satstore.analysis.logistic.loss import Codes, class_logits, softmax, tile_logits
from satstore.analysis.logistic.problem import LogisticProblem
from satstore.analysis.logistic.solver import solve
from satstore.analysis.row_source import ArrayRows, RowSource, as_row_source
from satstore.analysis.tiles import tile_height, tiles
from satstore.errors import ConfigError


class LogisticProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression on rows that need not fit in memory.

    A scikit-learn classifier of NumPy arrays and all that scikit-learn takes for one, of two axes; also of
    Dask and Zarr arrays of two or more axes (those after the first are flattened into features), xarray's
    over either, and a :class:`.RowSource`. Of these, a tile of 24 MiB per thread, three more and two stored
    blocks are in memory at a time; the solver's history takes 8 · MEMORY bytes per coefficient. The same
    values give the same coefficients, bit for bit, however they are stored and chunked, on any number of
    threads.

    Parameters
    ----------
    C
        The weight of the losses against the penalty ½‖W‖², above 0.
    tol
        The solver stops when no entry of the gradient of objective / (C·n) is larger, as scikit-learn's does.
    max_iter
        Iterations of L-BFGS at most; one costs a pass over the rows, rarely two.

    Attributes
    ----------
    classes_
        (k,), the labels in ascending order.
    coef_
        (k, F), or (1, F) for two classes, float64.
    intercept_
        (k,), or (1,) for two classes, float64.
    n_features_in_
        F.
    n_iter_
        Iterations that were made.
    n_passes_
        Passes over the rows that evaluated the objective.
    converged_
        Whether the gradient came within tol, or the objective stopped falling in float64's last digits.
    objective_
        ½‖W‖² + C·Σ loss at the end.
    train_loss_
        The mean loss at the end, in nats.
    """

    def __init__(self, C: float = 1.0, tol: float = 1e-4, max_iter: int = 1000) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to X, n rows of F features, and y, (n,) labels.

        Raises
        ------
        ConfigError
            If a parameter is out of range, rows and labels differ in number, or there is one class only.
        NumericsError
            If out-of-core rows hold NaN or infinities (of arrays in memory scikit-learn says it: ValueError).
        """
        self._check_parameters()
        rows, labels = self._training_data(X, y)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(
                f"the labels have one class only, {str(self.classes_[0])!r}; a probe needs two or more"
            )
        problem = LogisticProblem(
            n_rows=rows.shape[0],
            n_features=rows.shape[1],
            n_classes=len(self.classes_),
            C=self.C,
            tol=self.tol,
            max_iter=int(self.max_iter),
        )
        with start_tile_threads() as threads:
            solution = solve(ThreadEngine(rows, codes, problem.n_outputs, threads), problem)
        self.coef_, self.intercept_ = solution.weights[0], solution.intercept[0]
        self._shift = None if solution.shift is None else solution.shift[0]
        self.n_iter_, self.n_passes_ = int(solution.n_iterations[0]), solution.n_passes
        self.objective_, self.train_loss_ = float(solution.objective[0]), float(solution.mean_loss[0])
        self.converged_ = bool(solution.converged[0])
        if not self.converged_:
            self._warn(float(solution.gradient[0]))
        return self

    def decision_function(self, X: Any) -> Floats:
        """Compute the logits, (n, k), or (n,) for two classes, in one pass."""
        logits = np.concatenate(list(self._logits(X)), axis=1)
        return logits[0] if len(logits) == 1 else logits.T

    def predict_proba(self, X: Any) -> Floats:
        """Compute the classes' probabilities, (n, k), in one pass."""
        return np.concatenate([softmax(class_logits(part[None]))[0].T for part in self._logits(X)])

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the labels, (n,), in one pass."""
        codes = [class_logits(part[None])[0].argmax(axis=0) for part in self._logits(X)]
        return np.asarray(self.classes_[np.concatenate(codes)])

    def _logits(self, X: Any) -> Iterator[Floats]:
        """Yield the logits (K, rows) of all rows in order; products are in the dtype of the rows."""
        rows = self._rows(X)
        height = tile_height(self.n_features_in_, len(self.coef_))

        def compute(_: slice, tile: Floats) -> Floats:
            weights, offset = self._model(tile.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                logits: Floats = tile_logits(tile[:, None], weights, offset)[0]
            return logits

        with start_tile_threads() as threads:
            for logits in threads.map(compute, tiles(rows, height, threads.reader, shift=self._shift)):
                if not np.isfinite(logits).all():
                    raise threads.reader.submit(nonfinite_error, rows).result()
                yield logits

    def _model(self, dtype: Any) -> tuple[Floats, Floats]:
        """Return the weights (1, K, F) and the offset (1, K) that belongs to rows less the shift."""
        offset = self.intercept_ if self._shift is None else self.intercept_ + self.coef_ @ self._shift
        return self.coef_[None].astype(dtype), offset[None].astype(dtype)

    def _rows(self, X: Any) -> RowSource:
        check_is_fitted(self)
        rows = as_row_source(X)
        if rows is None:
            return ArrayRows(validate_data(self, X, reset=False, dtype="numeric"))
        if rows.shape[1] != self.n_features_in_ or not rows.shape[0]:
            raise ConfigError(
                f"expected one row or more of {self.n_features_in_} features, got shape {rows.shape}"
            )
        return rows

    def _training_data(self, X: Any, y: Any) -> tuple[RowSource, NDArray[Any]]:
        rows = as_row_source(X)
        if rows is None:
            X, y = validate_data(self, X, y, dtype="numeric")
            return ArrayRows(X), y
        if y is None:
            raise ConfigError("expected a label for each row, got y=None")
        labels = column_or_1d(np.asarray(y), warn=True)
        if len(labels) != rows.shape[0]:
            raise ConfigError(f"expected a label for each of {rows.shape[0]} rows, got {len(labels)} labels")
        if 0 in rows.shape:
            raise ConfigError(f"expected one row and one feature or more, got shape {rows.shape}")
        self.n_features_in_ = rows.shape[1]
        if hasattr(self, "feature_names_in_"):
            del self.feature_names_in_  # of an earlier fit
        return rows, labels

    def _check_parameters(self) -> None:
        if not isinstance(self.C, Real) or not (np.isfinite(self.C) and self.C > 0):
            raise ConfigError(f"expected C to be a finite number above 0, got {self.C!r}")
        if not isinstance(self.tol, Real) or not self.tol >= 0:
            raise ConfigError(f"expected tol to be 0 or above, got {self.tol!r}")
        if not isinstance(self.max_iter, Real) or not self.max_iter >= 1:
            raise ConfigError(f"expected max_iter to be 1 or above, got {self.max_iter!r}")

    def _warn(self, gradient: float) -> None:
        advice = (
            "raise max_iter or tol"
            if self.n_iter_ >= self.max_iter
            else "rounding allows no further descent: raise tol, or scale the features"
        )
        warnings.warn(
            f"the probe has not converged: after {self.n_iter_} iterations the largest gradient entry is "
            f"{gradient:.2g}, above tol={self.tol:g}; {advice}",
            ConvergenceWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """How well a probe predicts the labels of some rows.

    Attributes
    ----------
    accuracy
        The share of all rows whose label is predicted.
    top_accuracy
        The share of all rows whose label is among the ``top`` most probable classes.
    loss
        The mean loss in nats over the rows whose label is a class of the probe; NaN if there are none.
    confusion
        (k, k) int64: rows of class i that are predicted as class j, in the order of ``classes_``.
    top
        How many classes top_accuracy counts: as asked, k at most.
    n_samples
        The number of rows.
    n_unseen
        Rows whose label was not there in training: wrong by both accuracies, left out of loss and confusion.
    """

    accuracy: float
    top_accuracy: float
    loss: float
    confusion: Codes
    top: int
    n_samples: int
    n_unseen: int


def evaluate(probe: LogisticProbe, rows: Any, labels: Any, top: int = 5) -> ProbeScores:
    """Evaluate a fitted probe in one pass over rows, of any kind that it can be fitted to.

    Parameters
    ----------
    labels
        (n,), of the rows.
    top
        Count a row as right for top_accuracy if its label is among so many classes. Of equally probable
        classes the first counts as the more probable, as in ``predict``.
    """
    rows, labels = probe._rows(rows), column_or_1d(np.asarray(labels))
    n_rows, k = rows.shape[0], len(probe.classes_)
    if len(labels) != n_rows:
        raise ConfigError(f"expected a label for each of {n_rows} rows, got {len(labels)} labels")
    if top < 1:
        raise ConfigError(f"expected top to be 1 or above, got {top}")
    codes = class_codes(labels, probe.classes_)
    # Products are in the dtype of the rows, as in predict.
    weights, offset = probe._model(float_dtype(rows.read(0, 1).dtype))
    query = EvaluationQuery(weights, offset, probe._shift, top)
    with start_tile_threads() as threads:
        sums = ThreadEngine(rows, codes, len(probe.coef_), threads).sums(query)
    n_seen = int(sums.confusion.sum())
    return ProbeScores(
        accuracy=int(sums.right[0]) / n_rows,
        top_accuracy=int(sums.top[0]) / n_rows,
        loss=float(sums.loss[0]) / n_seen if n_seen else float("nan"),
        confusion=sums.confusion[0],
        top=min(top, k),
        n_samples=n_rows,
        n_unseen=n_rows - n_seen,
    )
