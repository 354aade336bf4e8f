"""Figures: from a run's tables to matplotlib. Nothing is computed here that a stage computes."""

from satstore.plots.evolution import plot_evolution
from satstore.plots.layers import plot_comparison, plot_layers
from satstore.plots.others import plot_cka, plot_epoch, plot_projection, plot_spectrum, plot_training
from satstore.plots.paper import Panel, plot_paper_figure, plot_relative, tabulate_relative
from satstore.plots.pixelwise import plot_pixelwise
from satstore.plots.style import save_figure

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
