"""What is asked: the tasks, their documents, and how an answer is marked."""
