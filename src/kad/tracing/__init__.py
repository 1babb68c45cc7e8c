"""What a composed model decided at each position of one answer: the trace, its page and its terminal view."""
