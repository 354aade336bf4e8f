"""The types of modules that count as layers: those with weights that mix features."""

from torch import nn
from torch.nn.modules.conv import _ConvNd

LAYER_TYPES = (_ConvNd, nn.Linear, nn.LSTM)
"""_ConvNd is the base of Conv and ConvTranspose in one, two and three dimensions, and of nothing else."""
