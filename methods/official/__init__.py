"""What only the code released with a paper does; a method's official variant uses it."""
