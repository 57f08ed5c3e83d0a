"""From offers to a market model: prices are read, made medians, fitted and tested on what was left out.

The only room that may use scikit-learn, SciPy and NumPy for prices. A price needs none of it: `scoring` reads the fitted numbers.
"""
