"""A folder of C++ that runs an artifact where there is no Python."""
