"""Figures of a run's tables, drawn with matplotlib; nothing is computed here that a stage computes."""

from satstore.reports.plots.cka_plot import plot_cka
from satstore.reports.plots.evolution_plot import plot_evolution
from satstore.reports.plots.layer_curves import plot_comparison, plot_layers
from satstore.reports.plots.paper_figures import Panel, plot_paper_figure, plot_relative, tabulate_relative
from satstore.reports.plots.pixelwise_plot import plot_pixelwise
from satstore.reports.plots.projection_plot import plot_projection
from satstore.reports.plots.spectrum_plot import plot_spectrum
from satstore.reports.plots.style import save_figure
from satstore.reports.plots.training_plot import plot_epoch, plot_training

__all__ = [
    "Panel",
    "plot_cka",
    "plot_comparison",
    "plot_epoch",
    "plot_evolution",
    "plot_layers",
    "plot_paper_figure",
    "plot_pixelwise",
    "plot_projection",
    "plot_relative",
    "plot_spectrum",
    "plot_training",
    "save_figure",
    "tabulate_relative",
]
