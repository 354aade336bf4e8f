"""The sizes and settings of a logistic regression, from which its tiles, sample and memory follow.

The shapes in this folder: P problems (1, or one per position of a pixelwise probe), n rows of P · F features,
k classes and K outputs: k, or 1 for two classes.
"""

from dataclasses import dataclass

# The typical curvature of the losses, as a share of that of probabilities that are all 1/k. It falls while
# classes come apart. Passes to tol 1e-4 at 0.05, 0.02, 0.01 and 0.005: 50, 48, 53, 62 (4,096 conv features,
# half the labels drawn), 24, 21, 20, 20 (10 classes), 26, 21, 22, 27 (128 pixels, 200 classes).
CURVATURE_SHARE = 0.01
# Rows whose covariance is taken for that of all: a quarter of them, and no more than these, nor than these
# values. On 20,000 x 4,096 features, 200 classes, 128, 256, 512 and 1,024 rows: 38, 27, 23, 18 passes.
SAMPLE_SHARE, SAMPLE_ROWS, SAMPLE_VALUES = 4, 1024, 2**23


@dataclass(frozen=True, kw_only=True)
class LogisticProblem:
    """P logistic regressions on the same rows, all of one size.

    Attributes
    ----------
    n_rows, n_features, n_classes, n_positions
        n, P · F, k and P.
    C
        The weight of the losses against the penalty ½‖W‖².
    tol
        The solver stops when no entry of the gradient of objective / (C · n) is larger.
    """

    n_rows: int
    n_features: int
    n_classes: int
    C: float
    tol: float
    max_iter: int
    n_positions: int = 1
    value_bytes: int = 2

    @property
    def n_outputs(self) -> int:
        """K."""
        return self.n_classes if self.n_classes > 2 else 1

    @property
    def n_logits(self) -> int:
        """The number of logits of a row: P · K."""
        return self.n_positions * self.n_outputs

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, K, F + 1), of the solver's variables: a row of weights and an intercept per output."""
        return self.n_positions, self.n_outputs, self.n_features // self.n_positions + 1

    @property
    def n_coefficients(self) -> int:
        """The number of variables of one problem: K · (F + 1)."""
        return self.shape[1] * self.shape[2]

    @property
    def n_sample(self) -> int:
        """The number of rows from which the features' covariance is estimated."""
        return min(self.n_rows // SAMPLE_SHARE, SAMPLE_ROWS, SAMPLE_VALUES // self.n_features)

    @property
    def strength(self) -> float:
        """The losses' typical curvature h by logits, summed over rows and weighted: C · n · h."""
        return self.C * self.n_rows * CURVATURE_SHARE * (self.n_classes - 1) / self.n_classes**2
