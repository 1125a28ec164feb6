"""What Tokenweir says about itself while it runs."""
