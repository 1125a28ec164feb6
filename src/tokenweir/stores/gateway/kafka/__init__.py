"""Events of requests in Kafka: 64 lanes, each a partition."""
