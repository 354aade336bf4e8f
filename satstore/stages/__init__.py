"""The stages: a file each. A stage's module is light; it imports what it computes with in its function."""

from satstore.registry import Entry

ROWS = (
    Entry("train", "satstore.stages.train:STAGE"),
    Entry("extract", "satstore.stages.extract.stage:STAGE"),
    Entry("saturation", "satstore.stages.saturation:STAGE"),
    Entry("probe", "satstore.stages.probe.stage:STAGE"),
    Entry("receptive-field", "satstore.stages.receptive_field:STAGE"),
    Entry("project", "satstore.stages.project:STAGE"),
    Entry("flops", "satstore.stages.flops:STAGE"),
)
