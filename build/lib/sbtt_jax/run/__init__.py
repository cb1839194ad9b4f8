"""Disk and people: run folders, checkpoints, evaluation, figures, reports."""
