"""The engine room: the ledger, Celery, the providers, delivery, retry, the sweep and every setting."""
