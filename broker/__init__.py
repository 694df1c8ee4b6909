"""The write side and the delivery side of Everput; imports neither api nor projections."""
