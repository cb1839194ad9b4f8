"""What is learned from: recordings, sampling patterns, the Lorenz set. No JAX in here."""
