"""The ledger's schema, revision by revision: forward only."""
