"""What is released: the sdist, the wheel, and what installers make of them."""
