"""Receives webhooks: the Flask application, its server, and the sources, which define who may send what."""
