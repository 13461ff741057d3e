"""Expected results that were computed once, in other environments, and the scripts that did it."""
