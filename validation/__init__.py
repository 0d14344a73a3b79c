"""Whether what the library says is true, by simulation: scripts that anyone can run again."""
