"""What the tools measure and draw, each in a module of its own: scores, costs, tables, figures."""
