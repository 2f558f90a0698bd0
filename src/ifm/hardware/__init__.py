"""Devices, memory and the sharing of work over processes."""
