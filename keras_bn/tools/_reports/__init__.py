"""What the tools say: findings, tables, a figure, a progress bar."""
