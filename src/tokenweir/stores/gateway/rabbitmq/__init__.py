"""Jobs in RabbitMQ's quorum queues."""
