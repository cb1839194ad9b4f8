"""Selective backpropagation through time: firing rates from recordings with holes in them."""
