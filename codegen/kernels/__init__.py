"""Kernels: functions from a specification and a target to a TVM function."""
