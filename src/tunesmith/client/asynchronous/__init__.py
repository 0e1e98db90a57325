"""The async client, written by hand; `scripts/make_sync_client.py` makes `tunesmith.client.synchronous` from it."""
