"""Adapters to frameworks. Each is thin: it translates between a framework's types and the library's, nothing more."""
