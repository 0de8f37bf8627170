"""The report of a compilation: its content, what it says of itself, and the page made of it.

Needs no torch but for `facts`, which looks at programs: an artifact's page can be made anywhere.
"""
