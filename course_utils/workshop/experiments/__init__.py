"""What measures: each module writes a result file that the book shows."""
