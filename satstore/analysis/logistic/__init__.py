"""Fit logistic regressions out of core: estimator, loss, solver, and the engines that run its passes."""
