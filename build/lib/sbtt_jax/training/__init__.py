"""How models learn: one epoch, the optimizer, all models of a run. No files, no printing."""
