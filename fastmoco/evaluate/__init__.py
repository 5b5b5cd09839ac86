"""What was learned: features of a frozen encoder and what a classifier makes of them."""
