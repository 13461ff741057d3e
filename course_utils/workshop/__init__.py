"""What makes the course: nothing here is for learners, and nothing else imports it."""
