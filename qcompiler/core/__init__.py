"""Vocabulary shared by every other package: no content, no policy."""
