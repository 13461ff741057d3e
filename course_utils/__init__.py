"""A small from-scratch implementation of every tuning method that the course teaches."""
