"""Processors by configuration: what is done to requests and answers, in order, at the door, at work and at the end."""
