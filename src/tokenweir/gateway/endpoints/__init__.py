"""The model servers behind the gateway: how they are spoken to, and which of them is asked."""
