"""What the oscillators of one trained model do, and what they are worth."""
