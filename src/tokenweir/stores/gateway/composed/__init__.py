"""One intake made of three stores: quota, requests and queue, so that a crash between any two loses nothing."""
