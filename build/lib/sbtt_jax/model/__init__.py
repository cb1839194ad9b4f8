"""The science: the autoencoder, its GRU, inference and scores. No settings, no files in here."""
