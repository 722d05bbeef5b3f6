"""The routes, one module for each part of OpenAI's protocol."""
