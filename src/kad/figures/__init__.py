"""Figures and analyses over many answers: their data, their drawing, the quality of the approximation."""
