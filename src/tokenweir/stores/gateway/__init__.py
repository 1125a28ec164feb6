"""What the gateway keeps: accepted requests, reservations, the ledger, jobs and events, embedded or scaled."""
