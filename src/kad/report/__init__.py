"""Seeing it: traces and their page, the figures, the analysis of the approximation."""
