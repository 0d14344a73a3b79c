"""What is in a study's folder: read, compared with the plan, and repaired."""
