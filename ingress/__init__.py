"""Webhooks: the Flask application that takes them, and the sources that say who may send what."""
