"""The client without an event loop: made from `tunesmith.client.asynchronous`, the same but for waiting."""
