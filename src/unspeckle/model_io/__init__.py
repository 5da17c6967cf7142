"""Any path to a Model, and a Model to a file: files are opened, recognized and built here."""
