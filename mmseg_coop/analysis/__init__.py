"""What the tools measure and draw, each in a module of its own: scores, costs, tables, figures.

The arguments of these functions are the options of the tools, whose ``--help`` explains them.
"""
