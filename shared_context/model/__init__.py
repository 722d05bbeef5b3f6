"""The model stacked on itself: loading, compressor, injection, injecting decoder, adapters."""
