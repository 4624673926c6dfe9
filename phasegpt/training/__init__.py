"""One run and many: configuration, Lightning module, callbacks, run folder, sweeps."""
