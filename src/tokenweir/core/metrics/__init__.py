"""What is measured of requests, one small file per tag."""
