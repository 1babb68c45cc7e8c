"""What a pair is: which models, which rule, how the base model is asked; and its folder."""
