"""What the tools measure and draw: scores, costs, tables and figures."""
