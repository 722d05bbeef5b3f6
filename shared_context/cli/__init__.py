"""The shared-context command: thin, it reads options, calls the store and prints."""
