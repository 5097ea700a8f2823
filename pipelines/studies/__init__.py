"""Studies: a published table is one command, whose report shows our figures beside the published ones."""
